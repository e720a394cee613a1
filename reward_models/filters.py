"""Gaussian filters on image tensors, plain and restricted to a mask."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def blur(image: Float[Tensor, "n c h w"], sigma: float) -> Float[Tensor, "n c h w"]:
    """Gaussian blur of standard deviation `sigma` pixels, separable, edges replicated; the kernel ends at 3 sigma."""
    reach = max(1, int(3 * sigma + 0.5))
    at = torch.arange(-reach, reach + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-at.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1).expand(image.shape[1], 1, 1, -1)
    padded = F.pad(image, (reach,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel, groups=image.shape[1])
    return F.conv2d(rows, kernel.transpose(2, 3), groups=image.shape[1])


def blur_inside(image: Float[Tensor, "n c h w"], mask: Float[Tensor, "n 1 h w"], sigma: float) -> Float[Tensor, "n c h w"]:
    """Gaussian average over the mask's pixels only (normalised convolution); 0 where no such pixel is within reach."""
    return blur(image * mask, sigma) / blur(mask, sigma).clamp_min(1e-4)


def mean_over(values: Float[Tensor, "n c h w"], mask: Float[Tensor, "n 1 h w"]) -> Float[Tensor, " n"]:
    """Mean over channels and the mask's pixels, one number an image; 0 for an empty mask."""
    total = (values * mask).sum((1, 2, 3))
    return total / (mask.sum((1, 2, 3)) * values.shape[1]).clamp_min(1e-6)
