"""What is measured: one case is one model at one size, one row one method on it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """A method's cost, or why there is none."""

    model: str
    setting: str
    """Size, as the table says it."""
    method: str
    unit: str = ""
    """Of network evaluations: pictures or tokens."""
    seconds: float = 0.0
    """Of one group or update, without decoding and rewards where they are ours; the median."""
    evaluations: float = 0.0
    """Of the network in one group or update, a backward counted as two."""
    flops: float = 0.0
    """Of the model in it, see `tools.bench.gpu.flops`."""
    peak: int = 0
    """Most bytes of tensors at once."""
    planned: int = 0
    """The same, as `--dry-run` plans it."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """For results.json."""
    problem: str = ""
    """Why nothing was measured."""

    @property
    def rate(self) -> float | None:
        """Network evaluations per second."""
        return self.evaluations / self.seconds if self.seconds else None

    @property
    def ratio(self) -> float | None:
        """Measured memory over planned."""
        return self.peak / self.planned if self.peak and self.planned else None

    def utilisation(self, peak_flops: float | None) -> float | None:
        """Share of what the device could have computed meanwhile; None where that is not known.

        Args:
            peak_flops: of the device, FLOP/s.
        """
        return self.flops / self.seconds / peak_flops if self.seconds and peak_flops else None


@dataclass(frozen=True)
class Case:
    """One model at one size.

    Attributes:
        model: as the table says it.
        setting: likewise.
        methods: in the order in which they are measured.
        measure: gives a row for each of them; may raise `torch.OutOfMemoryError`.
        advise: what the planner says would fit, in words.
    """

    model: str
    setting: str
    methods: tuple[str, ...]
    measure: Callable[[], Iterator[Row]]
    advise: Callable[[], str]
