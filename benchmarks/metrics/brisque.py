"""BRISQUE (Mittal, Moorthy, Bovik, 2012): 36 statistics of the normalised luminance, read by a support vector machine.

Bundled are the machine and the feature ranges of the package brisque 0.2.0, a training of its own on the same recipe: its values stand
near those of pyiqa's `brisque`, which needs brisque_svm_weights.pth, but are not the same. Computed in float64: with weights of up to 1024
the machine turns float32 rounding of the features, and single levels of luminance, into hundredths of the score.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.metric import Metric, Pictures, Range, Score, WeightFile
from benchmarks.natural_scenes import asymmetric_fit, gaussian_fit, halved, luma, normalised
from benchmarks.pyiqa_nets import IQA_WEIGHTS, NO_PYIQA, quiet
from portraitkit.errors import WeightsError

OFFICIAL = "brisque_svm_weights.pth"
BUNDLED = Path(__file__).parents[1] / "weights" / "brisque_svm.txt"
RANGES = Path(__file__).parents[1] / "weights" / "brisque_ranges.txt"
SHIFTS = ((0, 1), (1, 0), (1, 1), (-1, 1))


@dataclass(frozen=True)
class Machine:
    """A support vector machine with a Gaussian kernel: sum of c exp(-gamma |x - v|^2), minus rho.

    Attributes:
        low: lower end of each feature, mapped to -1.
        high: upper end of each feature, mapped to 1.
        vectors: the support vectors v.
        coefficients: their c.
        gamma: of the kernel.
        rho: bias.
    """

    low: Float[Tensor, " 36"]
    high: Float[Tensor, " 36"]
    vectors: Float[Tensor, "m 36"]
    coefficients: Float[Tensor, " m"]
    gamma: float
    rho: float

    def __call__(self, features: Float[Tensor, "n 36"]) -> Float[Tensor, " n"]:
        """The regressed score."""
        scaled = 2 * (features - self.low) / (self.high - self.low) - 1
        distance = (scaled[:, None] - self.vectors).square().sum(-1)
        return (-self.gamma * distance).exp() @ self.coefficients - self.rho


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
    """A machine in libsvm's text format.

    Raises:
        WeightsError: not such a file.
    """
    try:
        head, _, body = path.read_text(encoding="ascii").partition("\nSV\n")
        settings = dict(line.split(maxsplit=1) for line in head.splitlines())
        rows = [line.split() for line in body.splitlines()]
        vectors = torch.tensor([[float(part.partition(":")[2]) for part in row[1:]] for row in rows], dtype=torch.float64)
        coefficients = torch.tensor([float(row[0]) for row in rows], dtype=torch.float64)
        return Machine(*read_ranges(ranges), vectors, coefficients, float(settings["gamma"]), float(settings["rho"]))
    except (KeyError, ValueError, IndexError) as error:
        raise WeightsError(f"{path}: is not a libsvm machine of 36 features ({error}); install portraitkit again") from error


def read_ranges(path: Path) -> tuple[Float[Tensor, " 36"], Float[Tensor, " 36"]]:
    """Lower and upper ends of the features, one pair a line."""
    lines = [line.split() for line in path.read_text(encoding="ascii").splitlines() if not line.startswith("#")]
    low, high = torch.tensor([[float(part) for part in line] for line in lines], dtype=torch.float64).T
    return low, high


def pyiqa_ranges() -> tuple[Float[Tensor, " 36"], Float[Tensor, " 36"]]:
    """Ranges for pyiqa's machine, asked of the installed pyiqa: it maps each feature linearly onto [-1, 1].

    Raises:
        WeightsError: pyiqa is not installed.
    """
    try:
        with quiet():
            from pyiqa.archs.brisque_arch import scale_features
    except ImportError as error:
        raise WeightsError(f"{OFFICIAL}: {NO_PYIQA}; without that file the bundled machine is used") from error
    at_0, at_1 = scale_features(torch.stack([torch.zeros(36), torch.ones(36)]).double())
    low = -(at_0 + 1) / (at_1 - at_0)
    return low, low + 2 / (at_1 - at_0)


def read_original(path: Path, low: Float[Tensor, " 36"], high: Float[Tensor, " 36"]) -> Machine:
    """The machine that pyiqa uses: coefficients and support vectors, (774, 36).

    Raises:
        WeightsError: the file holds something else, or more than tensors.
    """
    try:
        coefficients, vectors = torch.load(path, weights_only=True)
        return Machine(low, high, vectors.double().reshape(-1, 36), coefficients.double().flatten(), 0.05, -153.591)
    except (ValueError, TypeError, AttributeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: is not BRISQUE's machine ({reason}); download it again") from error


def open_brisque(files: Mapping[str, Path]) -> Score:
    """The scoring function, with the original machine where it is there."""
    official = files.get(OFFICIAL)
    machine = read_machine(BUNDLED, RANGES) if official is None else read_original(official, *pyiqa_ranges())

    def score(pictures: Pictures) -> Float[Tensor, " n"]:
        return machine(scene_features(pictures.once(luma).double()))

    return score


METRIC = Metric(
    name="brisque",
    title="distortion of natural scenes",
    direction="lower",
    range=Range(0, 150),
    reference="none",
    licence="own code; parameters: package brisque 0.2.0 (Apache-2.0)",
    open=open_brisque,
    weights=(
        WeightFile(
            OFFICIAL,
            f"{IQA_WEIGHTS}/{OFFICIAL}",
            mib=0.1,
            optional=True,
        ),
    ),
    bundled=(BUNDLED, RANGES),
    revision="brisque 0.2.0",
    smallest=16,
    missing="it is flat",
)
