"""What a generator is given and what it gives."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from preference_data.people.subjects import Subject
from preference_data.schema import Origin


@dataclass(frozen=True)
class Candidate:
    """One retouch of a subject.

    Attributes:
        pixels: RGB in [0, 1], of the size of the subject.
        origin: where it comes from.
        scores: true scores of the dimensions, 1 to 5, where the faults are known.
        group: candidates of one group are compared with each other only; None is compared with any other None.
    """

    pixels: Float[Tensor, "3 h w"]
    origin: Origin
    scores: dict[str, int] | None = None
    group: str | None = None


@dataclass(frozen=True)
class GeneratorOptions:
    """What all generators are told.

    Attributes:
        prompt: editing instruction.
        num_steps: sampling steps.
        device: cpu, cuda, ...
        photos: folder of the photos, where there is one.
        names: of the photos in it, relative to it.
        extra: anything a generator of a user's own wants to know.
    """

    prompt: str
    num_steps: int
    device: str
    photos: Path | None = None
    names: tuple[str, ...] = ()
    extra: dict[str, str] = field(default_factory=dict)


@runtime_checkable
class Generator(Protocol):
    """Makes candidates."""

    @property
    def name(self) -> str:
        """As recorded in `Origin.generator`."""
        ...

    def candidates(self, subject: Subject, count: int, seed: int) -> list[Candidate]:
        """Up to `count` candidates of a subject, the same for the same seed; fewer where there are no more.

        Raises:
            UserError: this subject cannot be done; it is put into quarantine with the message.
        """
        ...
