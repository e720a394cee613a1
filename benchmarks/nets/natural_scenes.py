"""Natural scene statistics: the normalised luminance of a picture and the distributions fitted to it (Mittal et al., 2012 and 2013).

Shared by NIQE and BRISQUE (in float64) and PIQE (in float32, as its reference implementation): precision matters, because the variance
of flat places is a small difference of large numbers.
"""

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.metric import Pictures

YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
WINDOW, SIGMA = 7, 7 / 6
Maps = Float[Tensor, "n h w"]


def luma(pictures: Pictures) -> Maps:
    """Luminance in 0 .. 255, rounded as 8-bit implementations have it."""
    return (pictures.once(luminance_of) * 255).round()


def luminance_of(pictures: Pictures) -> Maps:
    """Y of YIQ, in [0, 1]."""
    return luminance(pictures.pixels)


def luminance(pixels: Float[Tensor, "n 3 h w"]) -> Maps:
    """Y of YIQ, in [0, 1]. Summed in the order of a product with the colour matrix: a level that lies at .5 would round otherwise."""
    return (pixels.permute(0, 2, 3, 1) @ pixels.new_tensor(YIQ).T)[..., 0]


def normalised(maps: Maps, *, padding: str) -> Maps:
    """(I - mean) / (deviation + 1) of luminance in 0 .. 255, with Gaussian local moments: 7 x 7, sigma 7/6. Beyond the picture's edge
    the padding is "replicate" or "constant" (zeros).
    """
    both = F.pad(torch.stack([maps, maps.square()]), (WINDOW // 2,) * 4, mode=padding)
    if maps.dtype == torch.float32:
        mean, square = F.conv2d(both.flatten(0, 1)[:, None], _window()[None, None].to(both)).view(2, *maps.shape)
    else:
        rows, columns = _separated()
        mean, square = _filtered(_filtered(both, columns, 1, -1), rows, 1, -2)
    deviation = ((square - mean.square()).abs() + torch.finfo(maps.dtype).eps).sqrt()
    return (maps - mean) / (deviation + 1)


def halved(maps: Maps) -> Float[Tensor, "n hh ww"]:
    """Half the size by MATLAB's `imresize`: bicubic, filtered against aliasing, edges mirrored."""
    for dim in (-2, -1):
        length = maps.shape[dim]
        index = torch.arange(-3, 2 * ((length + 1) // 2) + 3)
        index = torch.where(index < 0, -1 - index, index)
        index = torch.where(index >= length, 2 * length - 1 - index, index).clamp(0, length - 1)
        maps = _filtered(maps.index_select(dim, index.to(maps.device)), _cubic(), 2, dim)
    return maps


def _filtered(maps: Float[Tensor, "... h w"], kernel: Float[Tensor, " k"], step: int, dim: int) -> Float[Tensor, "... hh ww"]:
    """Correlation along one dimension, every `step`-th place; a sum of slices is faster here than a convolution in float64."""
    places = (maps.shape[dim] - len(kernel)) // step + 1
    out: Tensor | None = None
    for offset, weight in enumerate(kernel.tolist()):
        part = maps.narrow(dim, offset, step * (places - 1) + 1)
        part = part[..., ::step] if dim == -1 else part[..., ::step, :]
        out = part * weight if out is None else out.add_(part, alpha=weight)
    assert out is not None
    return out


@cache
def _window() -> Float[Tensor, "7 7"]:
    """In float32, as the reference implementations hold it, whatever they compute in: its sum is not quite 1."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-(offsets[:, None].square() + offsets.square()) / (2 * SIGMA**2))
    return (weights / weights.sum()).float()


@cache
def _separated() -> tuple[Float[Tensor, " 7"], Float[Tensor, " 7"]]:
    """The window as a product of rows and columns, with the float32 window's sum: in flat places that sum decides the variance."""
    weights = gaussian(WINDOW, SIGMA)
    return weights * _window().double().sum(), weights


def gaussian(size: int, sigma: float) -> Float[Tensor, " size"]:
    """Weights of a window with an odd number of places, in float64; their sum is 1."""
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    weights = torch.exp(-offsets.square() / (2 * sigma**2))
    return weights / weights.sum()


@cache
def _cubic() -> Float[Tensor, " 8"]:
    """Keys' cubic (a = -.5), stretched by two."""
    x = (torch.arange(8, dtype=torch.float64) - 3.5).abs() / 2
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = torch.where(x <= 1, near, far)
    return weights / weights.sum()


@dataclass(frozen=True)
class Shapes:
    """Tables over the shape of the generalised Gaussian, .2, .201 .. 10."""

    alpha: Float[Tensor, " k"]  # the shapes
    ratio: Float[Tensor, " k"]  # squared mean magnitude over variance; rises with the shape
    width: Float[Tensor, " k"]  # the width (beta) of unit deviation
    skew: Float[Tensor, " k"]  # the mean of a unit difference between the widths of the two sides


@cache
def _shapes(dtype: torch.dtype, device: torch.device) -> Shapes:
    alpha = torch.arange(0.2, 10.001, 0.001).to(dtype)
    one, two, three = (torch.lgamma(order / alpha) for order in (1.0, 2.0, 3.0))
    tables = alpha, (2 * two - one - three).exp(), ((one - three) / 2).exp(), (two - one).exp()
    return Shapes(*(table.to(device) for table in tables))


def _nearest(ratio: Float[Tensor, " n"], table: Float[Tensor, " k"]) -> Int[Tensor, " n"]:
    """Index of the nearest entry of a rising table."""
    right = torch.searchsorted(table, ratio.contiguous()).clamp(1, len(table) - 1)
    return right - ((ratio - table[right - 1]).abs() <= (table[right] - ratio).abs()).long()


def gaussian_fit(values: Float[Tensor, "n k"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Shape and deviation of the generalised Gaussian (zero mean) with the values' moments."""
    square = values.square().mean(-1)
    inverse = -square / values.abs().mean(-1).square()
    shapes = _shapes(values.dtype, values.device)
    return shapes.alpha[_nearest(inverse, -1 / shapes.ratio)], square.sqrt()


@dataclass(frozen=True)
class Asymmetric:
    """An asymmetric generalised Gaussian: its shape, the deviations of its two sides, their widths, and its mean."""

    alpha: Float[Tensor, " n"]
    left: Float[Tensor, " n"]
    right: Float[Tensor, " n"]
    left_width: Float[Tensor, " n"]
    right_width: Float[Tensor, " n"]
    mean: Float[Tensor, " n"]


def asymmetric_fit(values: Float[Tensor, "n k"]) -> Asymmetric:
    """The asymmetric generalised Gaussian with the values' moments; NaN where one side has no values."""
    square = values.square()
    below, above = values < 0, values > 0
    left_sum, total = (square * below).sum(-1), square.sum(-1)
    left = (left_sum / below.sum(-1)).sqrt()
    right = ((total - left_sum) / above.sum(-1)).sqrt()
    gamma = left / right
    ratio = values.abs().mean(-1).square() / (total / values.shape[-1])
    ratio = ratio * (gamma**3 + 1) * (gamma + 1) / (gamma**2 + 1).square()
    shapes = _shapes(values.dtype, values.device)
    index = _nearest(ratio, shapes.ratio)
    width = shapes.width[index]
    return Asymmetric(shapes.alpha[index], left, right, left * width, right * width, (right - left) * width * shapes.skew[index])
