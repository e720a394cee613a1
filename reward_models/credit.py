"""Local credit: which part of the picture earned a candidate its reward.

A group-relative advantage credits the noise of every token with everything that happened anywhere in the picture: with 4096 noise
dimensions and one number a candidate, nearly all of the gradient is noise. But most retouch errors have a place. To first order
around the group, the combined reward is a sum over the picture's cells,

    R ~ sum_i dR/de_i sum_cells e_i(cell),    e_i = sum_cells e_i(cell),

and a token answers for the cells within `LocalError.reach` of it; rewards without a place are credited to every token. What a
token changes beyond that reach is left out: a bias, traded for variance (measured in docs/measurements/retoucher.md).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from reward_models.photos import Photos
from reward_models.reward_set import RewardSet
from reward_models.verifiable import LocalError, Reward

CELLS = 8  # Cells along each side of the picture


def local_credit(
    candidates: Float[Tensor, "n 3 h w"],
    photos: Photos,
    photo_of: Int[Tensor, " n"],
    rewards: RewardSet,
    parts: dict[str, Float[Tensor, " n"]],
) -> Float[Tensor, "n cells"]:
    """The part of the combined reward that each cell answers for, up to a constant of the group: `CELLS * CELLS` values a candidate, row by
    row; on the CPU, as `parts` are, which are `rewards.parts(candidates, photos, photo_of)`."""
    errors = {name: _cells(candidates, photos, photo_of, local, rewards.batch) for name in parts if (local := _local(rewards, name))}
    _, index = torch.unique(photo_of, return_inverse=True)
    totals = {name: _group_mean(cells.sum(1), index).requires_grad_() for name, cells in errors.items()}
    others = {name: _group_mean(values, index).requires_grad_() for name, values in parts.items() if name not in errors}
    with torch.enable_grad():
        values = {name: local.curve(totals[name]) if (local := _local(rewards, name)) else others[name] for name in parts}
        combined = rewards.combined(values)
        slopes = torch.autograd.grad(combined[combined.isfinite()].sum(), [*totals.values(), *others.values()])
    slope = {name: s.nan_to_num(0.0, 0.0, 0.0) for name, s in zip([*totals, *others], slopes, strict=True)}
    credit = torch.zeros(len(candidates), CELLS * CELLS)
    for name, cells in errors.items():
        if local := _local(rewards, name):
            credit += (slope[name][:, None] * _within(cells, local.reach)).nan_to_num()
    for name in others:
        credit += (slope[name] * parts[name].nan_to_num())[:, None]
    return credit


def to_tokens(cells: Float[Tensor, "n cells"], tokens: int) -> Float[Tensor, "n tokens"]:
    """Every token of a square latent gets the value of the cell it lies in."""
    side = round(tokens**0.5)
    return F.interpolate(cells.unflatten(1, (1, CELLS, CELLS)), size=(side, side), mode="nearest").flatten(1)


def _local(rewards: RewardSet, name: str) -> LocalError | None:
    function = rewards.functions[name]
    return function.local if isinstance(function, Reward) else None


@torch.no_grad()
def _cells(candidates: Tensor, photos: Photos, photo_of: Tensor, local: LocalError, batch: int) -> Float[Tensor, "n cells"]:
    """Sums of the error map over the cells."""
    height, width = candidates.shape[-2:]
    sums = torch.empty(len(candidates), CELLS**2)
    for index in photo_of.unique().tolist():
        photo = photos.select(slice(index, index + 1))
        for rows in (photo_of == index).nonzero()[:, 0].split(batch):
            error = local.map(candidates[rows], photo)
            sums[rows] = (F.adaptive_avg_pool2d(error, CELLS).flatten(1) * (height * width / CELLS**2)).cpu()  # 64 numbers a candidate
    return sums


def _within(cells: Float[Tensor, "n cells"], reach: int) -> Float[Tensor, "n cells"]:
    """Sums over the square of cells up to `reach` away."""
    size = 2 * reach + 1
    return F.avg_pool2d(cells.unflatten(1, (1, CELLS, CELLS)), size, stride=1, padding=reach, divisor_override=1).flatten(1)


def _group_mean(values: Float[Tensor, " n"], index: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Each candidate's group mean, missing values left out."""
    count = int(index.max()) + 1
    finite = values.isfinite()
    total = values.new_zeros(count).index_add_(0, index, torch.where(finite, values, 0.0))
    known = values.new_zeros(count).index_add_(0, index, finite.to(values.dtype))
    return torch.where(known > 0, total / known.clamp_min(1), torch.nan)[index].detach()
