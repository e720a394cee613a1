"""One pass of the vision tower for each different picture of a batch.

A judge is shown the same photo with every candidate, and every pair in both orders. The tower reads each picture by itself, so a picture
that comes again needs no second pass: with both orders half of the passes remain, in a round robin of G candidates one for each.
"""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

KNOWN = ("Qwen2VisionTransformerPretrainedModel", "Qwen2_5_VisionTransformerPretrainedModel")
"""Towers that give one output per picture in order; others (Qwen3-VL adds features of deeper layers) read every picture anew."""


@contextmanager
def tower_once(model: Any, names: Sequence[Hashable]) -> Iterator[None]:
    """While active, the model's vision tower reads each different picture of a call once.

    Args:
        model: a vision-language model.
        names: of the pictures of the next call, in order: equal names are equal pictures. A call with another number of pictures, and a
            model whose tower is not in `KNOWN`, work as without.
    """
    first = {name: place for place, name in reversed(list(enumerate(names)))}
    towers: list[Any] = [module for module in model.modules() if type(module).__name__ in KNOWN]
    if not towers or len(first) == len(names):
        yield
        return
    tower = towers[0]
    keep = sorted(first.values())
    place_of = {name: keep.index(place) for name, place in first.items()}
    forward = tower.forward

    def once(hidden_states: Float[Tensor, "patches values"], grid_thw: Int[Tensor, "pictures 3"], **options: Any) -> Any:
        if len(grid_thw) != len(names):
            return forward(hidden_states, grid_thw, **options)
        patches = hidden_states.split(grid_thw.prod(-1).tolist())
        out = forward(torch.cat([patches[place] for place in keep]), grid_thw[keep], **options)
        merged = out.pooler_output.split((grid_thw[keep].prod(-1) // tower.spatial_merge_size**2).tolist())
        out.pooler_output = torch.cat([merged[place_of[name]] for name in names])
        return out

    tower.forward = once
    try:
        yield
    finally:
        del tower.forward
