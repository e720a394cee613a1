"""Tensors for tests of a sampler's step."""

import torch
from torch import Tensor

NOISY = ("flow_sde", "cps", "dance_sde")
SHAPE = (3, 4, 5)


def tensors(*names: str, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> list[Tensor]:
    """One tensor of noise a name; equal seeds give equal ones."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in names]
