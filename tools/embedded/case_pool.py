"""A pool of synthetic cases in memory, made once by all cores and then drawn from in random crops and label kinds."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from preference_data.people.synthetic import Case
from tools.embedded.labels import LABEL_SHARES, LABELS


@dataclass(frozen=True)
class LabelledBatch:
    """Photos with one label each; images RGB in [0, 1], `opacity` and `skin` in [0, 1], `kind` indexes `LABELS`."""

    source: Float[Tensor, "b 3 h w"]
    label: Float[Tensor, "b 3 h w"]
    clean: Float[Tensor, "b 3 h w"]
    opacity: Float[Tensor, "b 1 h w"]
    skin: Float[Tensor, "b 1 h w"]
    kind: Int[Tensor, " b"]
    strength: Float[Tensor, " b"]


class _Planes(Dataset[Tensor]):
    """Cases as 8 uint8 planes each: source (3), clean (3), opacity, skin."""

    def __init__(self, draw: Callable[[int], Case], seeds: Sequence[int]) -> None:
        self.draw, self.seeds = draw, seeds

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> Tensor:
        case = self.draw(self.seeds[index])
        planes = torch.cat([case.source, case.clean, case.opacity, case.skin])
        return (planes * 255).round().to(torch.uint8)


class CasePool:
    """The cases that `draw` makes of `seeds`, held as uint8."""

    def __init__(self, draw: Callable[[int], Case], seeds: Sequence[int], *, workers: int = 2) -> None:
        self.planes = torch.cat(list(DataLoader(_Planes(draw, seeds), batch_size=32, num_workers=workers)))

    def __add__(self, other: Self) -> Self:
        """The cases of both."""
        both = copy(self)
        both.planes = torch.cat([self.planes, other.planes])
        return both

    def batch(self, size: int, generator: torch.Generator, *, crop: int | None = None, kind: str | None = None) -> LabelledBatch:
        """Random cases, each with a label of random (or given) kind, cropped to `crop` px where given."""
        index = torch.randint(len(self.planes), (size,), generator=generator)
        return self.take(index, generator, crop=crop, kind=kind)

    def take(
        self, index: Int[Tensor, " b"], generator: torch.Generator, *, crop: int | None = None, kind: str | None = None
    ) -> LabelledBatch:
        """The cases at `index`, as `batch` gives them."""
        planes = self.planes[index].float() / 255
        size = len(index)
        shares = torch.tensor(list(LABEL_SHARES.values()))
        kinds = torch.multinomial(shares, size, replacement=True, generator=generator)
        if kind is not None:
            kinds = torch.full_like(kinds, list(LABELS).index(kind))
        strength = torch.rand(size, generator=generator)
        functions = list(LABELS.values())
        label = torch.stack([functions[k](p[:3], p[3:6], p[7:8], float(s)) for p, k, s in zip(planes, kinds, strength, strict=True)])
        planes = torch.cat([planes, label], 1)
        if crop is not None:
            tops = torch.randint(planes.shape[-2] - crop + 1, (size,), generator=generator)
            lefts = torch.randint(planes.shape[-1] - crop + 1, (size,), generator=generator)
            planes = torch.stack([p[:, t : t + crop, x : x + crop] for p, t, x in zip(planes, tops.tolist(), lefts.tolist(), strict=True)])
        return LabelledBatch(
            source=planes[:, :3],
            clean=planes[:, 3:6],
            opacity=planes[:, 6:7],
            skin=planes[:, 7:8],
            label=planes[:, 8:],
            kind=kinds,
            strength=strength,
        )
