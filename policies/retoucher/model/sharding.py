"""A frozen base divided among the processes by PyTorch's FSDP2: a base larger than a device can be aligned.

Each block's weights are gathered when it is evaluated and given back afterwards, in the forward and again in the backward. Only the base
is divided: the LoRA is added afterwards, whole in every process, and its gradients are summed once an update, as without sharding. So
weights, optimiser state, moving average and checkpoints are the same with and without it.

Gathering is something that all processes do together: each must evaluate the transformer equally often. `check_sharding` asks for equal
shares, and an update in which one process has fewer backwards than another repeats one with weight 0 (`accumulate_gradients`).
"""

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from policies.retoucher.config import RetoucherConfig
from policies.retoucher.model.backbone import Backbone
from portraitkit.errors import ConfigError


def check_sharding(config: RetoucherConfig, processes: int) -> None:
    """Refuse what cannot be divided, before anything is loaded.

    Raises:
        ConfigError: one process, or shares that are not equal.
    """
    if config.sharding == "none":
        return
    if processes == 1:
        raise ConfigError("--sharding fsdp2: divides the base among processes, and there is one; start several, or use --sharding none")
    if config.photos_per_step % processes:
        raise ConfigError(
            f"--photos-per-step {config.photos_per_step}: with --sharding fsdp2 a multiple of the {processes} processes; try "
            f"{-(-config.photos_per_step // processes) * processes}"
        )
    for option in ("validation_photos", "held_out_photos"):
        if getattr(config, option) < processes:
            name = option.replace("_", "-")
            raise ConfigError(f"--{name} {getattr(config, option)}: with --sharding fsdp2 at least one for each of {processes} processes")


def divide_base(backbone: Backbone, device: str) -> None:
    """Divide the weights of a backbone that was loaded on the CPU, and put its other networks on this process's device.

    Args:
        backbone: without LoRA layers.
        device: of this process.

    Raises:
        ConfigError: the backbone does not say how.
    """
    divide: Any = getattr(backbone, "divide", None)
    if divide is None:
        raise ConfigError(f"--sharding fsdp2: backbone {backbone.name!r} has no divide(device); leave the option out")
    divide(device)


def divide_weights(transformer: nn.Module, device: str) -> None:
    """FSDP2 on each of a frozen transformer's blocks, and on what is left of it.

    Args:
        transformer: a diffusers model, on the CPU; blocks are those that it says not to split.
        device: of this process.

    Raises:
        ConfigError: it names no blocks.
    """
    names = set(getattr(transformer, "_no_split_modules", None) or ())
    blocks = [module for module in transformer.modules() if type(module).__name__ in names]
    if not blocks:
        raise ConfigError(f"--sharding fsdp2: {type(transformer).__name__} names no blocks to divide; leave the option out")
    # Flux's single blocks return two views of one tensor; FSDP warns of what in-place operations on them would do, and diffusers has none.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    mesh = init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    for module in (*blocks, transformer):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
