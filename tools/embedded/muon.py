"""Muon for the matrices of a transformer's layers, AdamW for everything else, as one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` where a parameter is a layer's matrix, `torch.optim.AdamW` elsewhere (embeddings, norms, biases).

    Muon makes all directions of a matrix learn at one pace (Jordan et al. 2024). Trained from scratch, the tiny vision tower needs it:
    what it has to find is faint beside what all pictures share.

    Args:
        parameters: (name, parameter) of what is trained.
        muon_learning_rate: of the matrices.
        learning_rate: of the rest.
        weight_decay: of both.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, torch.nn.Parameter]],
        *,
        muon_learning_rate: float,
        learning_rate: float,
        weight_decay: float = 0.02,
    ) -> None:
        named = list(parameters)
        matrices = [parameter for name, parameter in named if parameter.ndim == 2 and "embed" not in name and "head" not in name]
        taken = {id(parameter) for parameter in matrices}
        rest = [parameter for _, parameter in named if id(parameter) not in taken]
        parts: list[torch.optim.Optimizer] = []
        if matrices:
            parts.append(torch.optim.Muon(matrices, lr=muon_learning_rate, weight_decay=weight_decay))
        if rest:
            parts.append(torch.optim.AdamW(rest, lr=learning_rate, weight_decay=weight_decay))
        self.parts = tuple(parts)
        super().__init__([parameter for _, parameter in named], {})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update both kinds; a closure is called once, before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Of both optimizers, in `parts`."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
