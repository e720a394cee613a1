"""NIQE (Mittal, Soundararajan, Bovik, 2013): how far the statistics of a picture's blocks lie from those of good photographs.

The parameters are the authors' own, number for number those of `modelparameters.mat` in their release, so the value is pyiqa's `niqe`. NIQE
does not punish over-smoothing, and a picture needs at least two blocks of 96 px each way.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.metric import Metric, Pictures, Range, Score
from benchmarks.nets.natural_scenes import asymmetric_fit, halved, luma, normalised

BLOCK = 96
BUNDLED = Path(__file__).parents[1] / "weights" / "niqe_pris_params.npz"
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))


def block_features(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n blocks 36"]:
    """18 features at full size and 18 at half size of every whole block of 96 px of luminance in 0 .. 255."""
    rows, columns = maps.shape[1] // BLOCK, maps.shape[2] // BLOCK
    maps = maps[:, : rows * BLOCK, : columns * BLOCK]
    scales = []
    for block in (BLOCK, BLOCK // 2):
        parts = normalised(maps, padding="replicate").unflatten(1, (rows, block)).unflatten(3, (columns, block))
        blocks = parts.transpose(2, 3).reshape(-1, block, block)
        scales.append(_features(blocks).view(len(maps), rows * columns, 18))
        if block == BLOCK:
            maps = halved(maps)
    return torch.cat(scales, -1)


def _features(blocks: Float[Tensor, "n h w"]) -> Float[Tensor, "n 18"]:
    fit = asymmetric_fit(blocks.flatten(1))
    features = [fit.alpha, (fit.left_width + fit.right_width) / 2]
    for shift in SHIFTS:
        fit = asymmetric_fit((blocks * blocks.roll(shift, (1, 2))).flatten(1))
        features += [fit.alpha, fit.mean, fit.left_width, fit.right_width]
    return torch.stack(features, -1)


def naturalness(features: Float[Tensor, "blocks 36"], mean: Float[Tensor, " 36"], covariance: Float[Tensor, "36 36"]) -> Float[Tensor, ""]:
    """Mahalanobis distance between the blocks' Gaussian and that of good photographs; NaN with fewer than two usable blocks."""
    kept = features[features.isfinite().all(1)]
    if len(kept) < 2:
        return features.new_tensor(torch.nan)
    gap = mean - features.nanmean(0)
    spread = torch.linalg.pinv((covariance + torch.cov(kept.T)) / 2)
    return (gap @ spread @ gap).sqrt()


def read_parameters() -> tuple[Float[Tensor, " 36"], Float[Tensor, "36 36"]]:
    """Mean and covariance of the features on good photographs."""
    with np.load(BUNDLED) as parts:
        return torch.from_numpy(parts["mu_pris_param"].flatten()), torch.from_numpy(parts["cov_pris_param"])


def open_niqe(files: Mapping[str, Path]) -> Score:
    mean, covariance = read_parameters()

    def score(pictures: Pictures) -> Float[Tensor, " n"]:
        features = block_features(pictures.once(luma).double())
        return torch.stack([naturalness(part, mean.to(part), covariance.to(part)) for part in features])

    return score


METRIC = Metric(
    name="niqe",
    title="naturalness",
    direction="lower",
    range=Range(0, 100),
    reference="none",
    licence="own code; parameters: University of Texas at Austin (free for any purpose, with its notice), by mmagic (Apache-2.0)",
    open=open_niqe,
    bundled=(BUNDLED,),
    revision="NIQE software release, 2012",
    version=2,
    smallest=2 * BLOCK,
    missing="it is flat or smaller than 192 px",
)
