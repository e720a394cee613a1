"""Noise levels and other per-sample numbers: checked, worked out in float64 on the CPU, and laid over a batch."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

Level = float | int | Float[Tensor, "..."]
"""A number for the whole batch, or one per sample: a float, a 0-d tensor or a `(batch,)` tensor."""


def as_levels(value: Level) -> Float64[Tensor, "..."]:
    """A number or one per sample as a detached float64 tensor on the CPU, shape `()` or `(batch,)`.

    A handful of numbers per step: in float64, the coefficients made from them are rounded once, where they are used.

    Args:
        value: a float, a 0-d tensor or a `(batch,)` tensor.

    Raises:
        ValueError: a tensor of more than one dimension.
    """
    number = value.detach() if isinstance(value, Tensor) else value
    levels = torch.as_tensor(number, dtype=torch.float64, device="cpu")
    if levels.ndim > 1:
        raise ValueError(f"per-sample numbers of shape {tuple(levels.shape)} must be a float or of shape (batch,)")
    return levels


def noise_levels(sigma: Level, sigma_next: Level) -> tuple[Float64[Tensor, "..."], Float64[Tensor, "..."]]:
    """The two noise levels of a step, checked.

    Args:
        sigma: level before the step, in (0, 1]; 1 is pure noise.
        sigma_next: level after it, in [0, sigma]; 0 is the image.

    Returns:
        Both in float64 on the CPU, each `()` or `(batch,)`.

    Raises:
        ValueError: a level out of its range, or one that rises.
    """
    before, after = as_levels(sigma), as_levels(sigma_next)
    if not bool(((before > 0) & (before <= 1)).all()):
        raise ValueError(f"sigma {before.tolist()} must lie in (0, 1]: 1 is noise, 0 the image")
    if not bool(((after >= 0) & (after <= before)).all()):
        raise ValueError(f"sigma_next {after.tolist()} must lie in [0, sigma], and sigma is {before.tolist()}")
    return before, after


def per_sample(levels: Float64[Tensor, "..."], like: Float[Tensor, " batch *dims"]) -> Float[Tensor, " batch *ones"]:
    """Lay per-sample numbers over a batch.

    Args:
        levels: `()` or `(batch,)`.
        like: any tensor of the batch; gives shape, dtype and device.

    Returns:
        `(batch, 1, ..., 1)`, as many dimensions as `like`.

    Raises:
        ValueError: as many numbers as samples are needed, or one.
    """
    if levels.numel() not in (1, like.shape[0]):
        raise ValueError(f"{levels.numel()} per-sample numbers for a batch of {like.shape[0]}")
    # one number is filled in where the batch is: a copy would wait for all that its device has still to do
    there = like.new_full((1,), levels.item()) if levels.numel() == 1 else levels.to(like)
    return there.reshape(-1, *[1] * (like.ndim - 1)).expand(like.shape[0], *[1] * (like.ndim - 1))
