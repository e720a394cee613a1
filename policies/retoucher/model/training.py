"""A frozen base made ready for training: float32 adapters, activations computed again, and weights divided by PyTorch's FSDP2.

Divided, a base larger than a device can be aligned. Each block's weights are gathered when it is evaluated and given back afterwards, in
the forward and again in the backward. Only the base is divided: the LoRA is added afterwards, whole in every process, and its gradients
are summed once an update, as without sharding. So weights, optimiser state, moving average and checkpoints are the same with and without.

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
from policies.retoucher.model.loading import need_bitsandbytes
from portraitkit.errors import ConfigError


def check_sharding(config: RetoucherConfig, processes: int) -> None:
    """ConfigError for what cannot be divided, before anything is loaded: one process, or shares that are not equal."""
    if config.sharding == "none":
        return
    if processes == 1:
        raise ConfigError("--sharding fsdp2: divides the base among processes, and there is one; start several, or use --sharding none")
    if config.photos_per_step % processes:
        rule = f"with --sharding fsdp2 a multiple of the {processes} processes"
        more = -(-config.photos_per_step // processes) * processes
        raise ConfigError(f"--photos-per-step {config.photos_per_step}: {rule}; try {more}")
    for name, count in (("validation", config.validation_photos), ("held-out", config.held_out_photos)):
        if count < processes:
            raise ConfigError(f"--{name}-photos {count}: with --sharding fsdp2 at least one for each of {processes} processes")


def check_guidance(config: RetoucherConfig, backbone: Any) -> None:
    """ConfigError for DiffusionNFT with guidance that is a difference of two velocities: its policies are not what drew the candidates."""
    if config.loss == "nft" and backbone.forwards > 1:
        raise ConfigError(f"--guidance {backbone.guidance:g}: --loss nft regresses the velocity of the prompt alone; give --guidance 1")


def divide_base(backbone: Backbone, device: str) -> None:
    """Divide the weights of a backbone without LoRA layers that was loaded on the CPU, and put its other networks on this process's device.
    ConfigError: the backbone does not say how."""
    if (divide := getattr(backbone, "divide", None)) is None:
        raise ConfigError(f"--sharding fsdp2: backbone {backbone.name!r} has no divide(device); leave the option out")
    divide(device)


def divide_weights(transformer: nn.Module, device: str) -> None:
    """FSDP2 on each of a frozen transformer's blocks, and on what is left of it. ConfigError: it names no blocks."""
    names = set(getattr(transformer, "_no_split_modules", None) or ())
    blocks = [module for module in transformer.modules() if type(module).__name__ in names]
    if not blocks:
        raise ConfigError(f"--sharding fsdp2: {type(transformer).__name__} names no blocks to divide; leave the option out")
    # Flux's single blocks return two views of one tensor; FSDP warns of what in-place operations on them would do, and diffusers has none.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    mesh = init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    for module in (*blocks, transformer):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def prepare_training(transformer: nn.Module, *, gradient_checkpointing: bool) -> None:
    """Make the trainable parameters float32, and keep or drop activations.

    Steps of bfloat16 weights are lost to rounding once they are below 1/256 of a weight; those of a LoRA at usual learning rates are.
    ConfigError: the transformer cannot do that."""
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if gradient_checkpointing:
        if not hasattr(transformer, "enable_gradient_checkpointing"):
            raise ConfigError("--gradient-checkpointing: this backbone's transformer cannot; leave the option out")
        transformer.enable_gradient_checkpointing()


def make_optimizer(kind: str, parameters: list[nn.Parameter], *, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW with betas .9 and .95, its state in float32 or, for tensors of 4096 values and more, in 8 bits."""
    settings = {"lr": learning_rate, "betas": (0.9, 0.95), "weight_decay": weight_decay}
    if kind == "adamw_8bit":
        return need_bitsandbytes("--optimizer adamw_8bit", "--optimizer adamw").optim.AdamW8bit(parameters, **settings)
    return torch.optim.AdamW(parameters, **settings)
