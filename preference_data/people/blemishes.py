"""Synthetic blemishes with a known mask, painted onto skin.

Every spot multiplies the skin under it by a tint, so that pores and shading stay visible through it, as they do on skin.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from preference_data.people.warps import pixel_grid

# Reflectance of the spot's core relative to the skin around it (R, G, B): inflamed, brown, scab, pale scar, diffuse redness.
TINTS = torch.tensor([[0.96, 0.66, 0.68], [0.66, 0.55, 0.50], [0.60, 0.42, 0.40], [1.14, 1.16, 1.16], [0.99, 0.83, 0.85]])
SHARES = torch.tensor([0.38, 0.28, 0.14, 0.08, 0.12])
DIFFUSE = 4


def paint_blemishes(
    clean: Float[Tensor, "3 h w"], skin: Float[Tensor, "1 h w"], generator: torch.Generator, *, count: tuple[int, int] = (5, 14)
) -> tuple[Float[Tensor, "3 h w"], Float[Tensor, "1 h w"]]:
    """Paint irregular spots on the skin of one portrait.

    Args:
        clean: the portrait without blemishes, RGB in [0, 1].
        skin: skin mask in [0, 1]; spots are centred where it exceeds .95.
        generator: source of all randomness.
        count: smallest and largest number of spots.

    Returns:
        The blemished portrait, RGB in [0, 1], and the opacity of the spots in [0, 1] (0 where nothing was painted).
    """
    height, width = clean.shape[-2:]
    unit = height / 128
    candidates = (skin[0] > 0.95).nonzero()
    if len(candidates) == 0:
        return clean.clone(), torch.zeros_like(skin)
    number = int(torch.randint(count[0], count[1] + 1, (1,), generator=generator))
    out, opacity = clean.clone(), torch.zeros_like(skin)
    grid = pixel_grid(height, width)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(1, generator=generator))

    for _ in range(number):
        y, x = candidates[torch.randint(len(candidates), (1,), generator=generator)[0]].tolist()
        kind = int(torch.multinomial(SHARES, 1, generator=generator))
        radius = math.exp(uniform(math.log(1.5), math.log(4.0))) * unit
        if kind == DIFFUSE:
            radius = uniform(4.0, 7.0) * unit
        offset = grid - torch.tensor([x + uniform(0, 1), y + uniform(0, 1)])
        angle = torch.atan2(offset[..., 1], offset[..., 0])
        stretch, turn = uniform(0.75, 1.35), uniform(0, math.pi)
        distance = offset.norm(dim=-1) / radius * torch.exp(math.log(stretch) * torch.cos(2 * (angle - turn)))
        distance = distance * (1 + uniform(0, 0.12) * torch.sin(3 * angle + uniform(0, 6.3)))
        softness = uniform(0.35, 0.6) if kind == DIFFUSE else uniform(0.12, 0.28)
        spot = torch.sigmoid((1 - distance) / softness) * uniform(0.65, 1.0) * skin[0]
        out = out * (1 - spot * (1 - TINTS[kind].view(3, 1, 1)))
        opacity = torch.maximum(opacity, spot[None])
    opacity = torch.where(opacity > 0.05, opacity, 0.0)
    return torch.where(opacity > 0, out, clean).clamp(0.0, 1.0), opacity
