"""What a metric is: one frozen object that says what it measures, from what, with which weights, and how to read its values.

A metric is one file with one constant METRIC (docs/add_a_metric.md). Built-in metrics load by the same road as `my_file.py:METRIC`.
"""

import inspect
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from portraitkit.errors import ConfigError

Shared = TypeVar("Shared")


@dataclass(frozen=True, eq=False)
class Pictures:
    """A batch of pictures of one size, decoded once and shared by all metrics. RGB in [0, 1]."""

    pixels: Float[Tensor, "n 3 h w"]  # the pictures to be measured
    source: Float[Tensor, "n 3 h w"] | None = None  # the untouched photo of each, None where the run has none
    reference: Float[Tensor, "n 3 h w"] | None = None  # the known good retouch of each, None where the run has none
    sources: tuple[str, ...] = ()  # what tells the untouched photos apart: pictures of one photo have one id
    _known: dict[object, object] = field(default_factory=dict)
    _locks: defaultdict[object, Lock] = field(default_factory=lambda: defaultdict(Lock))

    def __len__(self) -> int:
        return len(self.pixels)

    def once(self, function: Callable[["Pictures"], Shared]) -> Shared:
        """What `function` makes of the batch, computed for the first metric that asks and kept for the others."""
        with self._locks[function]:  # metrics run beside each other
            if function not in self._known:
                self._known[function] = function(self)
        return self._known[function]  # pyright: ignore[reportReturnType]

    def select(self, rows: list[int]) -> "Pictures":
        """Some of the pictures; what was computed for the whole batch is left behind."""
        if rows == list(range(len(self))):
            return self
        index = torch.tensor(rows)
        parts = [None if part is None else part[index] for part in (self.pixels, self.source, self.reference)]
        assert parts[0] is not None
        return Pictures(parts[0], parts[1], parts[2], tuple(self.sources[row] for row in rows) if self.sources else ())

    def to(self, device: str) -> "Pictures":
        """The pictures on a device."""
        if torch.device(device) == self.pixels.device:
            return self
        source, reference = (None if part is None else part.to(device) for part in (self.source, self.reference))
        return Pictures(self.pixels.to(device), source, reference, self.sources)


Score = Callable[[Pictures], Float[Tensor, "..."]]


def with_known(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The function with those of the options that it has a parameter for."""
    known = inspect.signature(function).parameters
    return partial(function, **{name: value for name, value in options.items() if name in known})


@dataclass(frozen=True)
class Range:
    """Lowest and highest value to be expected; infinite where there is no bound."""

    low: float = -float("inf")
    high: float = float("inf")

    def __str__(self) -> str:
        return f"{self.low:g} .. {self.high:g}".replace("inf", "∞")


@dataclass(frozen=True)
class WeightFile:
    """A file that a metric needs."""

    name: str  # in the weights folder; `<name without suffix>.safetensors` is taken in its place where it lies there
    origin: str  # where to get it: an address, or the package that ships it
    sha256: str = ""  # of the published file, or as many leading digits of it as were published; "" where none was
    mib: float = 0.0  # size, about
    optional: bool = False  # the metric runs without it, with what is bundled
    # the digits are only taken from the file's name, by the custom of naming files so: a file that does not fit is used with a note, not
    # refused
    from_name: bool = False


@dataclass(frozen=True)
class Metric:
    """A metric."""

    name: str  # pyiqa's where pyiqa has it
    title: str  # in a few words, for people
    direction: Literal["higher", "lower"]  # whether a higher or a lower value is better
    range: Range  # of the values
    # what a picture is compared with: nothing; "full", the known good retouch; "source", the untouched photo; "set", a folder of
    # pictures, with one value a method
    reference: Literal["none", "full", "source", "set"]
    licence: str  # of code and weights
    # from the found weight files by name (empty for a metric without) to the scoring function, with keywords `device` and `dtype` (None:
    # its own choice) where it asks for them. The function takes a batch, computes where its pictures are and returns one value a picture,
    # NaN where the metric does not apply, or one row of features a picture for a "set" metric
    open: Callable[..., Score]
    weights: tuple[WeightFile, ...] = ()  # files it needs beside the package
    # files of this package with parameters; their hash is part of the cache's key. So is that of a user's own file, which `load_metrics`
    # adds
    bundled: tuple[Path, ...] = ()
    revision: str = ""  # of the weights: a tag, a commit, or a release
    version: int = 1  # raised whenever the same picture gets another value; part of the cache's key
    smallest: int = 1  # shortest side in pixels that it can measure
    missing: str = "it does not apply"  # why a picture may have no value, for the report
    # for a "set" metric: features of the pictures and of the set to one value
    pool: Callable[[Float[Tensor, "n dim"], Float[Tensor, "m dim"]], float] | None = None

    def __post_init__(self) -> None:
        """Refuse what the suite could not run; ConfigError: a rule between the fields is broken."""
        if not self.name or any(char.isspace() or char in "/\\:" for char in self.name):
            raise ConfigError(f"metric {self.name!r}: a name has no spaces, slashes or colons; use pyiqa's where there is one")
        if (self.reference == "set") != (self.pool is not None):
            raise ConfigError(f"metric {self.name}: a set metric needs pool, and only a set metric has one")
        if self.range.low >= self.range.high:
            raise ConfigError(f"metric {self.name}: range {self.range} is empty; give low below high")

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is."""
        return 1 if self.direction == "higher" else -1

    @property
    def arrow(self) -> str:
        """For tables."""
        return "↑" if self.direction == "higher" else "↓"
