"""BRISQUE (Mittal, Moorthy, Bovik, 2012): 36 statistics of the normalised luminance, read by a support vector machine.

Bundled are the authors' own machine and feature ranges (allmodel and allrange of their release, trained on all of LIVE), the ones that
pyiqa's `brisque` uses. Computed in float64: with weights of up to 1024 the machine turns float32 rounding of the features, and single
levels of luminance, into hundredths of the score and more. A flat picture has no value.

With brisque_svm_weights.pth the value is pyiqa's own, by pyiqa's own functions in its float32: one picture at a time on one core, since the
order in which sums are rounded moves it, too. pyiqa on two cores differs from itself on one by up to a hundredth.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.metric import Metric, Pictures, Range, Score, WeightFile
from benchmarks.nets.natural_scenes import asymmetric_fit, gaussian_fit, halved, luma, normalised
from benchmarks.nets.pyiqa_nets import IQA_WEIGHTS, NO_PYIQA, quiet
from portraitkit.errors import WeightsError, reason_of
from portraitkit.runs.checkpoint import check_weights

OFFICIAL = "brisque_svm_weights.pth"
BUNDLED = Path(__file__).parents[1] / "weights" / "brisque_svm.txt"
RANGES = Path(__file__).parents[1] / "weights" / "brisque_ranges.txt"
SHIFTS = ((0, 1), (1, 0), (1, 1), (-1, 1))


@dataclass(frozen=True)
class Machine:
    """A support vector machine with a Gaussian kernel: sum of c exp(-gamma |x - v|^2), minus rho."""

    low: Float[Tensor, " 36"]  # lower end of each feature, mapped to -1
    high: Float[Tensor, " 36"]  # upper end of each feature, mapped to 1
    vectors: Float[Tensor, "m 36"]  # the support vectors v
    coefficients: Float[Tensor, " m"]  # their c
    gamma: float  # of the kernel
    rho: float  # bias

    def __call__(self, features: Float[Tensor, "n 36"]) -> Float[Tensor, " n"]:
        """The regressed score."""
        low, high, vectors, coefficients = (part.to(features) for part in (self.low, self.high, self.vectors, self.coefficients))
        scaled = 2 * (features - low) / (high - low) - 1
        distance = (scaled[:, None] - vectors).square().sum(-1)
        return (-self.gamma * distance).exp() @ coefficients - self.rho


def scene_features(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n 36"]:
    """18 features at full size and 18 at half size; luminance in 0 .. 255."""
    out = []
    for scale in range(2):
        coefficients = normalised(maps, padding="constant")
        alpha, deviation = gaussian_fit(coefficients.flatten(1))
        out += [alpha, deviation.square()]
        for shift in SHIFTS:
            fit = asymmetric_fit((coefficients * coefficients.roll(shift, (1, 2))).flatten(1))
            out += [fit.alpha, fit.mean, fit.left.square(), fit.right.square()]
        if scale == 0:
            maps = halved(maps)
    return torch.stack(out, -1)


def read_machine(path: Path, ranges: Path) -> Machine:
    """A machine in libsvm's text format; `ranges` holds the lower and the upper end of each feature, one pair a line.
    WeightsError: not such a file."""
    try:
        head, _, body = path.read_text(encoding="ascii").partition("\nSV\n")
        settings = dict(line.split(maxsplit=1) for line in head.splitlines())
        rows = [line.split() for line in body.splitlines()]
        vectors = torch.zeros(len(rows), 36, dtype=torch.float64)  # libsvm leaves zeros out
        for vector, row in zip(vectors, rows, strict=True):
            for index, _, value in (part.partition(":") for part in row[1:]):
                vector[int(index) - 1] = float(value)
        coefficients = torch.tensor([float(row[0]) for row in rows], dtype=torch.float64)
        low, high = torch.from_numpy(np.loadtxt(ranges)).T
        return Machine(low, high, vectors, coefficients, float(settings["gamma"]), float(settings["rho"]))
    except (KeyError, ValueError, IndexError) as error:
        raise WeightsError(f"{path}: is not a libsvm machine of 36 features ({error}); install portraitkit again") from error


def read_original(path: Path) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 36"]]:
    """The machine that pyiqa uses (774 vectors): coefficients and support vectors, as float32.
    WeightsError: the file holds something else, or more than tensors."""
    try:
        coefficients, vectors = torch.load(path, weights_only=True)
        vectors = vectors.float().reshape(-1, 36)
        check_weights(path, {"coefficients": coefficients, "vectors": vectors})
        return coefficients.float().reshape(len(vectors)), vectors
    except (ValueError, TypeError, AttributeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path}: is not BRISQUE's machine ({reason_of(error)}); download it again") from error


def open_original(path: Path) -> Score:
    """pyiqa's BRISQUE, number for number: `pyiqa.archs.brisque_arch.brisque` without the half size that it makes in vain.
    WeightsError: pyiqa is not installed, or the file is not the machine."""
    try:
        with quiet():
            from pyiqa.archs.brisque_arch import natural_scene_statistics, rbf_kernel, scale_features
            from pyiqa.matlab_utils import imresize
    except ImportError as error:
        raise WeightsError(f"{OFFICIAL}: {NO_PYIQA}; without that file the bundled machine is used") from error
    coefficients, vectors = read_original(path)

    def single(luminance: Float[Tensor, "1 1 h w"]) -> Float[Tensor, " 1"]:
        half = imresize(luminance, scale=0.5, antialiasing=True)
        features = torch.cat([natural_scene_statistics(luminance), natural_scene_statistics(half)], dim=-1)
        return (rbf_kernel(scale_features(features), vectors.t()) @ coefficients[:, None] + 153.591)[:, 0]

    def score(pictures: Pictures) -> Float[Tensor, " n"]:
        out = []
        for luminance in pictures.once(luma).cpu():  # whose roundings are what pyiqa's values are made of
            try:
                out.append(single(luminance[None, None]))
            except AssertionError:  # flat: pyiqa refuses it
                out.append(luminance.new_full((1,), torch.nan))
        return torch.cat(out)

    return score


def open_brisque(files: Mapping[str, Path]) -> Score:
    """The scoring function: pyiqa's where its machine is there, else the bundled one."""
    if OFFICIAL in files:
        return open_original(files[OFFICIAL])
    machine = read_machine(BUNDLED, RANGES)

    def score(pictures: Pictures) -> Float[Tensor, " n"]:
        maps = pictures.once(luma).double()
        flat = maps.amax((1, 2)) == maps.amin((1, 2))
        return torch.where(flat, torch.nan, machine(scene_features(maps)))

    return score


METRIC = Metric(
    name="brisque",
    title="distortion of natural scenes",
    direction="lower",
    range=Range(0, 150),
    reference="none",
    licence="own code; parameters: BRISQUE release of the University of Texas at Austin (free with its notice)",
    open=open_brisque,
    weights=(WeightFile(OFFICIAL, f"{IQA_WEIGHTS}/{OFFICIAL}", mib=0.1, optional=True),),
    bundled=(BUNDLED, RANGES),
    revision="BRISQUE release of 2011",
    version=3,
    smallest=16,
    missing="it is flat",
)
