"""Rollouts whose noise comes from one generator: the initial noise of all groups first, then that of each drawn step."""

from collections.abc import Sequence
from typing import Any

import torch

from policies.retoucher import rollout
from policies.retoucher.model.backbone import Backbone
from policies.retoucher.rollout import Noise, Rollout


def draw_noise(
    backbone: Backbone, drawn: Sequence[int], photos: int, *, group_size: int, shared_noise: bool, generator: torch.Generator
) -> Noise:
    """The noise of `photos` groups."""
    start = backbone.noise(photos if shared_noise else photos * group_size, generator)
    steps = {index: torch.randn(photos * group_size, *start.shape[1:], generator=generator).to(start) for index in drawn}
    return Noise(start, steps, group_size)


def roll_out(backbone: Backbone, condition: Any, anchors: Any, scheduler: Any, *, batch: int, bf16: bool = False, **noise: Any) -> Rollout:
    """The candidates of all photos."""
    drawn = draw_noise(backbone, scheduler.drawn_steps, len(condition), **noise)
    return rollout.roll_out(backbone, condition, anchors, scheduler, drawn, batch=batch, bf16=bf16)
