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
    """All rewards that apply, with their own weights, combined as `align-retoucher` does by default: by product, so that none is bought."""
    with torch.no_grad():
        parts = {name: reward(candidates, photos) for name, reward in REWARDS.items()}
    return combine(parts, {name: reward.weight for name, reward in REWARDS.items()}, "product")


def reward_metric(name: str, title: str, function: Measure, version: int = 1) -> Metric:
    """A reward as a metric, higher is better.

    Args:
        name: of the metric.
        title: for people.
        function: aligned candidates and their photos to values in [0, 1], NaN where the reward does not apply. A judge fits here too.
        version: of the values; see `Metric`.
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
        version=version,
        smallest=MIN_FACE,
        missing=NO_FACE,
    )


METRICS = [
    reward_metric("reward", "reward: weighted product", total_reward, version=2),
    *(reward_metric(f"reward_{name}", TITLES[name], reward) for name, reward in REWARDS.items()),
]
REWARD, BLEMISH_REMOVAL, TEXTURE, SKIN_TONE, IDENTITY, CLARITY = METRICS
