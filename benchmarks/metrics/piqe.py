"""PIQE (Venkatanath et al., 2015): the share of active blocks that look distorted or noisy. It has no trained parameters.

The values are those of pyiqa's `piqe`. MATLAB's differ where a side is no multiple of 16: with a remainder r it adds 16 - r mirrored
lines, to whole blocks; pyiqa adds r, of which only what fills a block counts. A picture of 193 x 257 px has 32.16 here and 25.92 there.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks.metric import Metric, Range
from benchmarks.nets.natural_scenes import luminance_of, normalised

BLOCK, SEGMENT = 16, 6
ACTIVE, IMPAIRED = 0.1, 0.1


def piqe(maps: Float[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    """Scores, 0 .. 100, lower is better, of luminance in [0, 1]."""
    maps = (255 * (maps / maps.amax((1, 2), keepdim=True))).round()
    maps = _filled(_filled(maps, 1), 2)
    parts = normalised(maps, padding="replicate")[:, : maps.shape[1] // BLOCK * BLOCK, : maps.shape[2] // BLOCK * BLOCK]
    blocks = parts.unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK)).transpose(2, 3).flatten(1, 2)
    variance = blocks.var((2, 3))
    active = variance > ACTIVE
    edges = torch.stack([blocks[:, :, 0], blocks[:, :, -1], blocks[:, :, :, 0], blocks[:, :, :, -1]], 2)
    distorted = (edges.unfold(-1, SEGMENT, 1).std(-1) < IMPAIRED).flatten(2).any(2)
    noisy = _is_noisy(blocks, variance)
    loss = (active * (distorted * (1 - variance) + noisy * variance)).sum(1)
    return 100 * (loss + 1) / (active.sum(1) + 1)


def _filled(maps: Float[Tensor, "n h w"], dim: int) -> Float[Tensor, "n hh ww"]:
    """As many mirrored lines at the end as the remainder of the length by 16 (which is what pyiqa does)."""
    length = maps.shape[dim]
    return torch.cat([maps, maps.narrow(dim, length - length % BLOCK, length % BLOCK).flip(dim)], dim)


def _is_noisy(blocks: Float[Tensor, "n m 16 16"], variance: Float[Tensor, "n m"]) -> Bool[Tensor, "n m"]:
    """Deviation more than twice its distance from the ratio of the two middle columns' deviation to that of those around.

    The reference leaves columns 8 and 10 out of those around, not 8 and 9, and every published value with it.
    """
    deviation = variance.sqrt()
    middle = BLOCK // 2
    centre = blocks[..., middle - 1 : middle + 1].std((2, 3))
    around = torch.cat([blocks[..., : middle - 1], blocks[..., middle : middle + 1], blocks[..., middle + 2 :]], -1).std((2, 3))
    ratio = (centre / around).nan_to_num()
    return deviation > 2 * (deviation - ratio).abs() / torch.maximum(deviation, ratio)


METRIC = Metric(
    name="piqe",
    title="distorted or noisy blocks",
    direction="lower",
    range=Range(0, 100),
    reference="none",
    licence="own code; no parameters",
    open=lambda files: lambda pictures: piqe(pictures.once(luminance_of)),
    smallest=BLOCK,
    missing="it is black",
)
