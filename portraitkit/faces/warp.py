"""Similarity transforms and differentiable sampling, shared by the mesh, the alignment and the identity nets.

Pixel coordinates everywhere in this package are continuous: x grows right, y grows down, the picture spans [0, w] x [0,
h], and the centre of the first pixel is (0.5, 0.5). A matrix (2, 3) maps image coordinates to crop coordinates: p_crop
= M[:, :2] @ p_image + M[:, 2].
"""

from math import ceil, floor

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from portraitkit.pictures.images import unit

MAX_SAMPLES = 8  # samples per output pixel and axis when a picture is shrunk
MAX_POINTS = 2**20  # samples of a picture that are held at once
WHOLE = 1536  # longest side of a picture of bytes that is made floats at once


def similarity(source: Float[Tensor, "batch n 2"], target: Float[Tensor, "batch n 2"]) -> Float[Tensor, "batch 2 3"]:
    """The matrices of the least-squares rotation, uniform scale and shift from `source` to `target` points (no reflection).

    In the plane the solution is closed: with centred points as complex numbers, a = sum(conj(s) t) / sum |s|^2.
    """
    source_mean, target_mean = source.mean(1, keepdim=True), target.mean(1, keepdim=True)
    s, t = source - source_mean, target - target_mean
    norm = (s * s).sum((1, 2))
    real = (s * t).sum((1, 2)) / norm
    imaginary = (s[..., 0] * t[..., 1] - s[..., 1] * t[..., 0]).sum(1) / norm
    linear = torch.stack([torch.stack([real, -imaginary], -1), torch.stack([imaginary, real], -1)], -2)
    shift = target_mean[:, 0] - (linear @ source_mean.mT)[..., 0]
    return torch.cat([linear, shift[..., None]], -1)


def invert(matrix: Float[Tensor, "batch 2 3"]) -> Float[Tensor, "batch 2 3"]:
    """The matrices of the inverse maps."""
    (a, b), (c, d) = matrix[..., :2].permute(1, 2, 0)
    adjugate = torch.stack([torch.stack([d, -b], -1), torch.stack([-c, a], -1)], -2)
    linear = adjugate / (a * d - b * c)[:, None, None]
    return torch.cat([linear, -linear @ matrix[..., 2:]], -1)


def transform(points: Float[Tensor, "batch n 2"], matrix: Float[Tensor, "batch 2 3"]) -> Float[Tensor, "batch n 2"]:
    """Map points by matrices."""
    return points @ matrix[..., :2].mT + matrix[..., 2][:, None]


def placed(points: Float[Tensor, "*n d"], image: Float[Tensor, "*c h w"] | UInt8[Tensor, "*c h w"]) -> Float[Tensor, "*n d"]:
    """Points or matrices where an image lies, and in its precision if it is of floats."""
    return points.to(image) if image.is_floating_point() else points.to(image.device)


def sample(
    images: Float[Tensor, "batch c h w"] | UInt8[Tensor, "batch c h w"],
    matrix: Float[Tensor, "batch 2 3"],
    size: int | tuple[int, int],
    *,
    outside: str = "border",
    mode: str = "bilinear",
) -> Float[Tensor, "batch c rows columns"]:
    """Cut crops, differentiable with respect to the images, of any range; `matrix` is image -> crop, `size` the side of square crops in
    pixels, or height and width.

    Where a crop shrinks the picture, every output pixel is the mean of k x k samples (an area filter; k is at most 8), so that fine texture
    does not alias. Bytes are cut as floats in [0, 1], and only what a strip of the crop shows of a large picture is made floats. Outside,
    "border" repeats the edge and "zeros" is black; the mode is "bilinear", or "bicubic" (sharper, may leave the range by a little).
    """
    if not images.is_floating_point() and max(images.shape[-2:]) <= WHOLE:
        images = unit(images)
    shrunk = (matrix[:, :, 0].norm(dim=-1)).detach().nan_to_num(1.0)
    scale = shrunk.clamp(min=1 / MAX_SAMPLES)
    samples = [max(ceil(1 / value - 1e-3), 1) for value in scale.tolist()]
    if len(set(samples)) > 1:  # one by one, so that no crop depends on its neighbours in the batch
        return torch.cat([sample(images[i : i + 1], matrix[i : i + 1], size, outside=outside, mode=mode) for i in range(len(images))])
    k, (rows, columns) = samples[0], (size, size) if isinstance(size, int) else size
    back, strips = invert(matrix), []
    steps = (torch.arange(max(rows, columns) * k).to(matrix) + 0.5) / k
    looked = max(k, 1 / max(float(shrunk.min()), 1e-3))  # pixels that a sample stands for, across
    for strip in steps[: rows * k].split(max(int(MAX_POINTS / (columns * looked**2)), 1) * k):
        y, x = torch.meshgrid(strip, steps[: columns * k], indexing="ij")
        points = transform(torch.stack([x, y], -1).reshape(1, -1, 2).expand(len(images), -1, -1), back)
        part, corner = (images, 0.0) if images.is_floating_point() else _seen(images, points)
        grid = ((points - corner) / points.new_tensor([part.shape[-1], part.shape[-2]]) * 2 - 1).reshape(len(images), *y.shape, 2)
        crops = F.grid_sample(part, grid, mode=mode, padding_mode=outside, align_corners=False)
        strips.append(F.avg_pool2d(crops, k) if k > 1 else crops)
    return torch.cat(strips, 2)


def _seen(images: UInt8[Tensor, "batch c h w"], points: Float[Tensor, "batch n 2"]) -> tuple[Float[Tensor, "batch c hh ww"], Tensor]:
    """What a bicubic kernel at these points may look at, as floats, and the corner (2,) of the images at which it begins."""
    low, high = (side.tolist() for side in points.flatten(0, 1).aminmax(dim=0))
    spans = []
    for length, first, last in zip((images.shape[-1], images.shape[-2]), low, high, strict=True):
        start = min(max(floor(first) - 3, 0), length - 1)
        spans.append(slice(start, max(min(ceil(last) + 3, length), start + 1)))
    return unit(images[..., spans[1], spans[0]]), points.new_tensor([span.start for span in spans])
