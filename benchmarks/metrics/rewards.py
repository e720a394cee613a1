"""The verifiable rewards as metrics, beside judges and IQA: what the retoucher is trained on, on one table with what it is measured by."""

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.aligned_faces import face_metric
from reward_models.photos import Photos
from reward_models.reward import combine
from reward_models.verifiable import REWARDS

TITLES = {
    "blemish_removal": "reward: blemishes removed",
    "texture": "reward: texture kept",
    "skin_tone": "reward: skin tone kept",
    "identity": "reward: identity kept",
    "clarity": "reward: features kept",
    "own_color": "reward: own colours kept",
}


def total_reward(candidates: Float[Tensor, "n 3 h w"], photos: Photos) -> Float[Tensor, " n"]:
    """All rewards that apply, with their own weights, combined as `align-retoucher` does by default: by product, so that none is bought."""
    with torch.no_grad():
        parts = {name: reward(candidates, photos) for name, reward in REWARDS.items()}
    return combine(parts, {name: reward.weight for name, reward in REWARDS.items()}, "product")


METRICS = [
    face_metric("reward", "reward: weighted product", lambda files: total_reward, version=3),
    *(face_metric(f"reward_{name}", TITLES[name], lambda files, reward=reward: reward) for name, reward in REWARDS.items()),
]
REWARD, BLEMISH_REMOVAL, TEXTURE, SKIN_TONE, IDENTITY, CLARITY, OWN_COLOR = METRICS
