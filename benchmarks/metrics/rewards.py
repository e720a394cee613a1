"""The verifiable rewards as metrics, beside judges and IQA: what the retoucher is trained on, on one table with what it is measured by."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.aligned_faces import MIN_FACE, NO_FACE, Measure, on_faces
from benchmarks.metric import Metric, Range, Score
from reward_models.combine import combine
from reward_models.photos import Photos
from reward_models.verifiable import REWARDS

TITLES = {
    "blemish_removal": "reward: blemishes removed",
    "texture": "reward: texture kept",
    "skin_tone": "reward: skin tone kept",
    "identity": "reward: identity kept",
    "clarity": "reward: features kept",
}


def total_reward(candidates: Float[Tensor, "n 3 h w"], photos: Photos) -> Float[Tensor, " n"]:
    """Weighted mean of the rewards that apply, with their own weights: the default of `align-retoucher`."""
    with torch.no_grad():
        parts = {name: reward(candidates, photos) for name, reward in REWARDS.items()}
    return combine(parts, {name: reward.weight for name, reward in REWARDS.items()}, "sum")


def reward_metric(name: str, title: str, function: Measure) -> Metric:
    """A reward as a metric, higher is better.

    Args:
        name: of the metric.
        title: for people.
        function: aligned candidates and their photos to values in [0, 1], NaN where the reward does not apply. A judge fits here too.
    """

    def open_reward(files: Mapping[str, Path]) -> Score:
        return partial(on_faces, function)

    return Metric(
        name=name,
        title=title,
        direction="higher",
        range=Range(0, 1),
        reference="source",
        licence="own code",
        open=open_reward,
        smallest=MIN_FACE,
        missing=NO_FACE,
    )


METRICS = [
    reward_metric("reward", "reward: weighted sum", total_reward),
    *(reward_metric(f"reward_{name}", TITLES[name], reward) for name, reward in REWARDS.items()),
]
REWARD, BLEMISH_REMOVAL, TEXTURE, SKIN_TONE, IDENTITY, CLARITY = METRICS
