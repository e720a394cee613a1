"""Mesh morphs, shape warps and tone changes that turn a few real portraits into many synthetic people.

All fields are dense maps from output pixels to input pixels, applied by one `grid_sample`.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def pixel_grid(height: int, width: int) -> Float[Tensor, "h w 2"]:
    """Pixel centres as (x, y), in pixels: the centre of the first pixel is (0.5, 0.5)."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y], dim=-1)


def sample_at(image: Float[Tensor, "c h w"], points: Float[Tensor, "hh ww 2"]) -> Float[Tensor, "c hh ww"]:
    """The image read at `points` (x, y in pixels, centres at .5), bilinear, edges repeated."""
    height, width = image.shape[-2:]
    grid = points / torch.tensor([width, height]) * 2 - 1
    return F.grid_sample(image[None], grid[None], padding_mode="border", align_corners=False)[0]


def landmark_field(
    at: Float[Tensor, "points 2"], shift: Float[Tensor, "points 2"], size: int, *, reach: float = 0.06, nodes: int = 48
) -> Float[Tensor, "h w 2"]:
    """A smooth displacement that equals `shift` near the landmarks `at` and dies out away from them.

    Nadaraya-Watson regression with a Gaussian kernel of `reach` (share of the side) on a grid of `nodes` squared, then upsampled.
    """
    grid = pixel_grid(nodes, nodes).reshape(-1, 2) * (size / nodes)
    weight = torch.exp(-torch.cdist(grid, at).square() / (2 * (reach * size) ** 2))
    field = weight @ shift / (weight.sum(1, keepdim=True) + 0.5)
    return F.interpolate(field.T.reshape(1, 2, nodes, nodes), size=(size, size), mode="bicubic", align_corners=False)[0].permute(1, 2, 0)


def random_shape(at: Float[Tensor, "points 2"], size: int, generator: torch.Generator) -> Float[Tensor, "points 2"]:
    """Landmarks of another face shape: anisotropic scale plus eight smooth random bumps, in pixels."""
    centre = at.mean(0)
    scale = 1 + 0.05 * torch.randn(2, generator=generator).clamp(-2, 2)
    out = centre + (at - centre) * scale
    for _ in range(8):
        anchor = at[torch.randint(len(at), (1,), generator=generator)]
        reach = (0.06 + 0.10 * torch.rand(1, generator=generator)) * size
        push = 0.012 * size * torch.randn(1, 2, generator=generator).clamp(-2, 2)
        out = out + torch.exp(-(at - anchor).square().sum(1, keepdim=True) / (2 * reach**2)) * push
    return out


def skin_likeness(image: Float[Tensor, "3 h w"], skin: Float[Tensor, "1 h w"]) -> Float[Tensor, "1 h w"]:
    """How much each pixel's chromaticity resembles the face's own skin, in [0, 1]."""
    chroma = image / (image.sum(0, keepdim=True) + 0.05)
    weight = skin / skin.sum().clamp_min(1e-6)
    mean = (chroma * weight).sum((1, 2), keepdim=True)
    var = ((chroma - mean).square() * weight).sum((1, 2), keepdim=True) + 4e-4
    return torch.exp(-((chroma - mean).square() / (2 * var)).sum(0, keepdim=True) / 2)


def random_tone(image: Float[Tensor, "3 h w"], skin: Float[Tensor, "1 h w"], generator: torch.Generator) -> Float[Tensor, "3 h w"]:
    """Another skin tone, white balance, exposure, contrast, saturation and direction of light; RGB stays in [0, 1]."""
    height, width = image.shape[-2:]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).clamp(-2, 2)

    melanin = -0.15 + 1.0 * torch.rand(1, generator=generator)
    darker = image.clamp_min(1e-3) ** (1 + melanin * torch.tensor([0.65, 0.85, 0.95]).view(3, 1, 1))
    out = torch.lerp(image, darker, skin_likeness(image, skin))
    out = out.clamp_min(1e-3) ** torch.exp(0.12 * normal(1))
    out = out * torch.exp(0.05 * normal(3)).view(3, 1, 1) * torch.exp(0.12 * normal(1))
    grey = out.mean(0, keepdim=True)
    out = grey + (out - grey) * (1 + 0.15 * normal(1))
    at = pixel_grid(height, width) / torch.tensor([width, height]) - 0.5
    light = 1 + 0.35 * (at @ normal(2)) * 0.7
    return (out * light).clamp(0.0, 1.0)
