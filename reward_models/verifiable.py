"""Verifiable rewards of a retouch: six numbers in [0, 1], higher is better, each with the error it is made of.

Each reward takes candidates and their `Photos`, one each or one for all, and returns one value a candidate, NaN where it does not
apply. Three of the errors have a place: a map over the pixels that sums to the error (or its square), for `reward_models.credit`.
Every length is in pixels of a 128 px face and scales with the picture. `REWARDS` holds the rewards with their weights.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from portraitkit.faces.identity import identity_distance, identity_embedding
from portraitkit.faces.regions import region_masks
from portraitkit.pictures.images import ciede2000, luminance, srgb_to_lab
from reward_models.filters import blur, blur_inside, fine_energy, mean_over
from reward_models.photos import Photos

Candidates = Float[Tensor, "n 3 h w"]
Scores = Float[Tensor, " n"]
ErrorMap = Float[Tensor, "n 1 h w"]


def _unit(photos: Photos) -> float:
    return photos.source.shape[-1] / 128


def _untouched_skin(photos: Photos) -> Float[Tensor, "n 1 h w"]:
    """The skin away from blemishes: what an honest retouch leaves alone."""
    near = blur((photos.opacity > 0.05).to(photos.source.dtype), 1.5 * _unit(photos)) > 0.02
    return photos.skin * (~near)


def _stands_out(image: Candidates, photos: Photos) -> Candidates:
    """The picture minus the average of the unblemished skin around each pixel: blind to brightness and colour of the whole face."""
    return image - blur_inside(image, _untouched_skin(photos), 5 * _unit(photos))


def _share(values: Float[Tensor, "n c h w"], mask: Float[Tensor, "#n 1 h w"]) -> ErrorMap:
    """What each pixel adds to the mean over channels and the mask's pixels."""
    return (values * mask).mean(1, keepdim=True) / mask.sum((1, 2, 3), keepdim=True).clamp_min(1e-6)


def blemish_map(candidate: Candidates, photos: Photos) -> ErrorMap:
    """What each pixel adds to `blemish_residual`; NaN without blemishes."""
    spots = (photos.opacity > 0.05).to(candidate.dtype)
    known = photos.clean.isnan().logical_not()
    target = torch.where(known, _stands_out(photos.clean.nan_to_num(), photos), 0.0)
    left = _share((_stands_out(candidate, photos) - target).square(), spots)
    before = mean_over((_stands_out(photos.source, photos) - target).square(), spots)
    share = left / before.clamp_min(1e-8).view(-1, 1, 1, 1)
    return torch.where(spots.sum((1, 2, 3), keepdim=True) > 0, share, torch.nan)


def blemish_residual(candidate: Candidates, photos: Photos) -> Scores:
    """Share of the squared blemish error that is left: 0 = all gone, 1 = as in the photo; may exceed 1. NaN without blemishes.

    The error is taken inside the known (or detected) spots, between the candidate and the clean portrait (or the skin around the
    spot where no clean portrait is known), after each picture has lost the average of its own unblemished skin nearby.
    """
    return blemish_map(candidate, photos).sum((1, 2, 3))


def _removed(residual: Scores) -> Scores:
    return (1 - residual.sqrt()).clamp(0, 1)


def blemish_removal(candidate: Candidates, photos: Photos) -> Scores:
    """1 - sqrt(blemish_residual), clipped to [0, 1]: the share of the blemishes' contrast that is gone.

    Hacked by: blurring or flattening everything (texture and clarity fall), painting over the spots with foreign colours (does not
    pay: the error grows), brightening the face (does not pay: each picture is compared with its own surroundings).
    """
    return _removed(blemish_residual(candidate, photos))


def texture_map(candidate: Candidates, photos: Photos) -> ErrorMap:
    """What each pixel adds to the square of `texture_error`."""
    mask = _untouched_skin(photos)
    sigma = 2.0 * _unit(photos)
    after, before = luminance(candidate), luminance(photos.source)
    after, before = after - blur(after, sigma), before - blur(before, sigma)
    scale = mean_over(before.square(), mask).sqrt() + 2e-3
    return _share((after - before).square(), mask) / scale.square().view(-1, 1, 1, 1)


def texture_error(candidate: Candidates, photos: Photos) -> Scores:
    """Relative RMS change of the skin's fine detail, away from blemishes: 0 = pores exactly kept, about 1 = all gone.

    Detail is luma minus its Gaussian blur at 2 px. It grows with smoothing, with grain and with any pattern laid on the skin.
    """
    return texture_map(candidate, photos).sum((1, 2, 3)).sqrt()


def _kept(squared_error: Scores) -> Scores:
    return 1 / (1 + squared_error / 0.25)


def texture(candidate: Candidates, photos: Photos) -> Scores:
    """1 / (1 + (texture_error / .5)^2). Hacked by: copying the input (blemish removal is then 0)."""
    return _kept(texture_map(candidate, photos).sum((1, 2, 3)))


def clarity_map(candidate: Candidates, photos: Photos) -> ErrorMap:
    """What each pixel adds to the square of `clarity_error`."""
    change, scale = torch.zeros_like(candidate[:, :1]), candidate.new_zeros(len(photos))
    for dim in (-1, -2):
        after = luminance(candidate).diff(dim=dim)
        before = luminance(photos.source).diff(dim=dim)
        mask = photos.features.narrow(dim, 0, after.shape[dim])
        change.narrow(dim, 0, after.shape[dim]).add_(_share((after - before).square(), mask))
        scale = scale + mean_over(before.square(), mask)
    return change / (scale.sqrt() + 2e-3).square().view(-1, 1, 1, 1)


def clarity_error(candidate: Candidates, photos: Photos) -> Scores:
    """Relative RMS change of the gradients in eyes, brows and lips: 0 = unchanged; blur and sharpening both raise it."""
    return clarity_map(candidate, photos).sum((1, 2, 3)).sqrt()


def clarity(candidate: Candidates, photos: Photos) -> Scores:
    """1 / (1 + (clarity_error / .5)^2). Hacked by: copying the input (blemish removal is then 0)."""
    return _kept(clarity_map(candidate, photos).sum((1, 2, 3)))


def tone_error(candidate: Candidates, photos: Photos) -> Scores:
    """Mean CIELAB difference (dE76) of the skin's broad colour (Gaussian, 4 px), away from blemishes."""
    mask = _untouched_skin(photos)
    sigma = 4 * _unit(photos)
    after, before = (blur_inside(srgb_to_lab(image), mask, sigma) for image in (candidate, photos.source))
    return mean_over((after - before).square().sum(1, keepdim=True).add(1e-6).sqrt(), mask)


def skin_tone(candidate: Candidates, photos: Photos) -> Scores:
    """exp(-(max(0, tone_error - .5) / 4)^2): half a dE is free, whitening and blotches cost. Hacked by: copying the input."""
    return torch.exp(-((tone_error(candidate, photos) - 0.5).clamp_min(0) / 4).square())


def _broad_change(candidate: Candidates, photos: Photos, mask: Float[Tensor, "#n 1 h w"], sigma: float) -> ErrorMap:
    """CIEDE2000 between candidate and photo of the mask's colour, averaged by a Gaussian inside the mask."""
    return ciede2000(*(blur_inside(srgb_to_lab(image), mask, sigma * _unit(photos)) for image in (candidate, photos.source)))


def lip_change(candidate: Candidates, photos: Photos) -> Scores:
    """Mean CIEDE2000 of the lips' broad colour (Gaussian, 2 px) between candidate and photo: 0 = lips and lipstick as they were."""
    size = candidate.shape[-2:]
    lips = torch.stack([region_masks(mesh, *size, only=("lips",))["lips"] for mesh in photos.meshes])
    return mean_over(_broad_change(candidate, photos, lips, 2), lips)


def redness_change(candidate: Candidates, photos: Photos) -> Scores:
    """The same (Gaussian, 4 px) of a person's own redness, as on nose and cheeks: the reddest quarter of the skin away from blemishes.

    A quarter of everyone's skin, whatever its colour: no threshold in a* would find as much on dark skin as on light.
    """
    skin = _untouched_skin(photos)
    redness = blur_inside(srgb_to_lab(photos.source), skin, 4 * _unit(photos))[:, 1:2]
    solid = skin > 0.5
    least = torch.stack([red[inside].quantile(0.75) if inside.any() else red.amax() for red, inside in zip(redness, solid, strict=True)])
    red = solid & (redness >= least.view(-1, 1, 1, 1))
    return mean_over(_broad_change(candidate, photos, skin, 4), red.to(skin.dtype))


def own_color(candidate: Candidates, photos: Photos) -> Scores:
    """Logistic in the larger of `lip_change` and `redness_change`, .5 at 4, above .96 below 2 and below .04 from 6 on.

    Hacked by: copying the input (blemish removal is then 0). Eyeshadow and the iris are not looked at.
    """
    return torch.sigmoid((4 - torch.maximum(lip_change(candidate, photos), redness_change(candidate, photos))) / 0.6)


def identity_change(candidate: Candidates, photos: Photos) -> Scores:
    """L2 distance of the identity embeddings of candidate and person (`Photos.identity`); about .6 separates two people."""
    return identity_distance(identity_embedding(candidate, photos.meshes), photos.identity)


def identity(candidate: Candidates, photos: Photos) -> Scores:
    """Logistic in the identity distance, .5 at .40 and above .95 below .25, so that mere copying earns nothing more.

    Hacked by: adversarial texture that the net reads as the same face (texture falls).
    """
    return torch.sigmoid((0.40 - identity_change(candidate, photos)) / 0.05)


def residual_grain(candidate: Candidates, photos: Photos) -> Scores:
    """RMS of the fine part (luma minus Gaussian blur, 1 px at 128 px) of what the retouch changed on the skin, in percent of full scale.

    No reward, but the early sign of a policy that collapses to noise.
    A clean edit is smooth except at the spots' edges; SDE noise left in the latents shows as grain everywhere.
    """
    return 100 * fine_energy(candidate - photos.source, photos.skin, candidate.shape[-1] / 128).sqrt()


@dataclass(frozen=True)
class LocalError:
    """Where a reward is lost: the reward is `curve(map.sum())`."""

    map: Callable[[Candidates, Photos], ErrorMap]  # candidates and photos to what each pixel adds to the error
    curve: Callable[[Scores], Scores]  # the summed error to the reward
    # how many eighths of the picture's side away a change of the latent still moves this error, as measured on the embedded retoucher
    # (docs/measurements/retoucher.md): credit is given that far
    reach: int


@dataclass(frozen=True)
class Reward:
    """A verifiable reward."""

    name: str  # as printed and logged
    # candidates and photos to values in [0, 1], higher is better, NaN where it does not apply
    function: Callable[[Candidates, Photos], Scores]
    weight: float  # default weight in the combination; the power to which a guard is taken
    local: LocalError | None = None  # where it is lost; None where that has no place (identity) or the whole region moves together (colour)
    guard: bool = False  # whether it multiplies what the others earn, so that nothing makes up for it; see `reward.combine`

    def __call__(self, candidates: Candidates, photos: Photos) -> Scores:
        """The reward of every candidate."""
        return self.function(candidates, photos)


REWARDS = {
    reward.name: reward
    for reward in (
        Reward("blemish_removal", blemish_removal, 0.40, LocalError(blemish_map, _removed, 1)),
        Reward("texture", texture, 0.20, LocalError(texture_map, _kept, 1)),
        Reward("skin_tone", skin_tone, 0.15),
        Reward("identity", identity, 0.15),
        Reward("clarity", clarity, 0.10, LocalError(clarity_map, _kept, 1)),
        Reward("own_color", own_color, 1.0, guard=True),
    )
}
GUARDS = tuple(name for name, reward in REWARDS.items() if reward.guard)
