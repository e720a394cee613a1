"""What a retouch did to the face: the verifiable rewards, on which the retoucher is trained, on one table with what it is measured by; and
what it did to skin and lips: blemishes left, texture lost or laid on, grain that sampling left behind, lip colour.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.aligned_faces import face_metric
from benchmarks.metric import Range
from reward_models.photos import Photos
from reward_models.reward import combine
from reward_models.verifiable import REWARDS, blemish_residual, lip_change, residual_grain, texture_error

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

BLEMISH_RESIDUAL = face_metric("blemish_residual", "blemishes left", lambda files: blemish_residual, Range(0, 2), direction="lower")
"""Share of the squared blemish error that is left: 0 all gone, 1 as in the photo; against the reference, or the skin around each spot."""
TEXTURE_ERROR = face_metric("texture_error", "texture lost or laid on", lambda files: texture_error, Range(0, 2), direction="lower")
"""Relative RMS change of the skin's fine detail away from blemishes, 0 where every pore is kept."""
SDE_GRAIN = face_metric("sde_grain", "grain laid on the skin", lambda files: residual_grain, Range(0, 10), direction="lower")
"""In percent of full scale: the early sign of a policy that collapses to noise."""
LIP_DE = face_metric("lip_dE", "lip colour changed", lambda files: lip_change, Range(0, 100), direction="lower")
"""CIEDE2000 of the lips' broad colour between picture and photo: up to 2 is hardly seen."""
