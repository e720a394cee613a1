"""Fidelity to the reference, as pyiqa has it.

PSNR: over RGB, in dB, 80 for equal pictures. SSIM (Wang et al., 2004): on luminance, 11 x 11 Gaussian window, sigma 1.5.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from benchmarks.metric import Metric, Pictures, Range
from benchmarks.nets.natural_scenes import gaussian, luminance

WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(pictures: Pictures) -> Float[Tensor, " n"]:
    """-10 log10 of the mean squared error, which is 1e-8 at least."""
    assert pictures.reference is not None
    error = (pictures.pixels - pictures.reference).double().square().mean((1, 2, 3))
    return -10 * (error + 1e-8).log10()


def _local(maps: Float[Tensor, "k n h w"]) -> Float[Tensor, "k n hh ww"]:
    weights = gaussian(WINDOW, SIGMA).to(maps.device)
    flat = maps.flatten(0, 1)[:, None]
    flat = F.conv2d(F.conv2d(flat, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))
    return flat[:, 0].unflatten(0, maps.shape[:2])


def ssim(pictures: Pictures) -> Float[Tensor, " n"]:
    """Mean structural similarity."""
    assert pictures.reference is not None
    a, b = ((luminance(pixels) * 255).round().double() for pixels in (pictures.pixels, pictures.reference))
    mean_a, mean_b, square_a, square_b, both = _local(torch.stack([a, b, a * a, b * b, a * b]))
    variances = (square_a - mean_a.square()) + (square_b - mean_b.square())
    structure = (2 * (both - mean_a * mean_b) + C2) / (variances + C2)
    light = (2 * mean_a * mean_b + C1) / (mean_a.square() + mean_b.square() + C1)
    return (light * structure).mean((1, 2))


SSIM = Metric(
    name="ssim",
    title="structure of the reference",
    direction="higher",
    range=Range(-1, 1),
    reference="full",
    licence="own code",
    open=lambda files: ssim,
    smallest=WINDOW,
)
PSNR = Metric(
    name="psnr",
    title="fidelity to the reference, dB",
    direction="higher",
    range=Range(0, 80),
    reference="full",
    licence="own code",
    open=lambda files: psnr,
)
