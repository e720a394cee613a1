"""One pass of the vision tower for each different picture of a batch.

Answers of one group are all about one picture, and a judge is shown the same photo with every candidate, and every pair in both orders.
The tower reads each picture by itself, so a picture that comes again needs no second pass: of a GRPO update with groups of 8, one in 8
remains, forward and backward.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from portraitkit.vlm.forward import other_forward

KNOWN = ("Qwen2VisionTransformerPretrainedModel", "Qwen2_5_VisionTransformerPretrainedModel")
"""Towers that give one output per picture in order; others (Qwen3-VL adds features of deeper layers) read every picture anew."""


@contextmanager
def tower_once(model: Any) -> Iterator[None]:
    """While active, the model's vision tower reads each different picture of a call once; outputs and gradients stay what they were.

    Args:
        model: a vision-language model, wrapped or not; one whose tower is not in `KNOWN` works as without.
    """

    def reading_once(tower: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
        def once(hidden_states: Float[Tensor, "patches values"], grid_thw: Int[Tensor, "pictures 3"], **options: Any) -> Any:
            patches = hidden_states.split(grid_thw.prod(-1).tolist())
            keep, place_of = _different(patches, grid_thw)
            if len(keep) == len(patches):
                return forward(hidden_states, grid_thw, **options)
            out = forward(torch.cat([patches[index] for index in keep]), grid_thw[keep], **options)
            merged = out.pooler_output.split((grid_thw[keep].prod(-1) // tower.spatial_merge_size**2).tolist())
            out.pooler_output = torch.cat([merged[place] for place in place_of])
            return out

        return once

    with other_forward(model, KNOWN, reading_once):
        yield


def _different(patches: Sequence[Float[Tensor, "_ values"]], grids: Int[Tensor, "pictures 3"]) -> tuple[list[int], list[int]]:
    """The first of each different picture, and for every picture the place of its equal among them.

    Sums tell nearly all different pictures apart with a single transfer from the device; those with equal ones are compared in full.
    """
    sums = torch.stack([values.sum(dtype=torch.float64) for values in patches]).tolist()
    places: dict[tuple[float, tuple[int, ...]], list[int]] = {}
    keep: list[int] = []
    place_of: list[int] = []
    for index, (total, grid) in enumerate(zip(sums, grids.tolist(), strict=True)):
        alike = places.setdefault((total, tuple(grid)), [])
        place = next((place for place in alike if torch.equal(patches[keep[place]], patches[index])), None)
        if place is None:
            place = len(keep)
            keep.append(index)
            alike.append(place)
        place_of.append(place)
    return keep, place_of
