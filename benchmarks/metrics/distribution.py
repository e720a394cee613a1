"""FID (Heusel et al., 2017) and KID (Binkowski et al., 2018) against a folder of pictures: one value a method, not a picture.

Features are those of clean-fid: the picture to 299 x 299 by Pillow's bicubic filter on floats, then the Inception net of the original
release. Means over few pictures are biased: compare only equal numbers of pictures.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from benchmarks.metric import Metric, Pictures, Range, Score, WeightFile
from benchmarks.nets.pyiqa_nets import inception_net

FILE = "pt_inception-2015-12-05-6726825d.pth"
SIDE = 299
SUBSETS, SUBSET = 100, 1000


def prepare(pixels: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 299 299"]:
    """Clean-fid's input, in [-1, 1]."""
    channels = [Image.fromarray(channel, mode="F") for channel in (pixels * 255).round().cpu().numpy()]  # for Pillow
    small = [np.asarray(channel.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).clip(0, 255) for channel in channels]
    return (torch.from_numpy(np.stack(small)) - 128) / 128


def open_inception(files: Mapping[str, Path]) -> Score:
    """The function that gives 2048 features a picture."""
    net = inception_net(files[FILE])

    def features(pictures: Pictures) -> Float[Tensor, "n 2048"]:
        device = pictures.pixels.device
        return net.to(device)(torch.stack([prepare(pixels) for pixels in pictures.pixels]).to(device), False, False)[0].flatten(1)

    return features


def frechet_distance(a: Float[Tensor, "n dim"], b: Float[Tensor, "m dim"]) -> float:
    """Between the Gaussians of two sets; NaN for fewer than two pictures in one of them."""
    if min(len(a), len(b)) < 2:
        return float("nan")
    a, b = a.double(), b.double()
    gap = (a.mean(0) - b.mean(0)).square().sum()
    spread_a, spread_b = (values - values.mean(0) for values in (a, b))
    spread_a, spread_b = spread_a / (len(a) - 1) ** 0.5, spread_b / (len(b) - 1) ** 0.5
    # trace of sqrt(A'A B'B) is the sum of the singular values of A B': exact, and small where there are few pictures
    return float(gap + spread_a.square().sum() + spread_b.square().sum() - 2 * torch.linalg.svdvals(spread_a @ spread_b.T).sum())


def kernel_distance(a: Float[Tensor, "n dim"], b: Float[Tensor, "m dim"]) -> float:
    """Unbiased squared MMD with the cubic kernel: the mean over 100 seeded subsets of at most 1000; NaN below two pictures."""
    size = min(len(a), len(b), SUBSET)
    if size < 2:
        return float("nan")
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    for _ in range(SUBSETS):
        x, y = (values[torch.randperm(len(values), generator=generator)[:size]].double() for values in (a, b))
        within = sum((_kernel(z, z).sum() - _kernel(z, z).diagonal().sum()) / (size * (size - 1)) for z in (x, y))
        total += float(within - 2 * _kernel(x, y).mean())
    return total / SUBSETS


def _kernel(x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
    return (x @ y.T / x.shape[1] + 1) ** 3


WEIGHTS = (WeightFile(FILE, f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}", "6726825d", 92),)
FID, KID = (
    Metric(
        name=name,
        title=title,
        direction="lower",
        range=Range(0),
        reference="set",
        licence="pyiqa's net: Apache-2.0 (pytorch-fid); own distances",
        open=open_inception,
        weights=WEIGHTS,
        revision="fid_weights",
        pool=pool,
    )
    for name, title, pool in (("fid", "distance of the sets", frechet_distance), ("kid", "distance of the sets, unbiased", kernel_distance))
)
