"""Residual noise of a retouch: the early sign of a policy that collapses to noise."""

from jaxtyping import Float
from torch import Tensor

from portraitkit.pictures.color import luminance
from reward_models.filters import blur, mean_over
from reward_models.photos import Photos


def residual_grain(candidate: Float[Tensor, "n 3 h w"], photos: Photos) -> Float[Tensor, " n"]:
    """RMS of the fine part (luma minus Gaussian blur, 1 px at 128 px) of what the retouch changed on the skin, in percent of full scale.

    A clean edit is smooth except at the spots' edges; SDE noise left in the latents shows as grain everywhere.
    """
    sigma = candidate.shape[-1] / 128
    change = luminance(candidate - photos.source)
    fine = change - blur(change, sigma)
    return 100 * mean_over(fine.square(), photos.skin).sqrt()
