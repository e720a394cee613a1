"""Training in little memory: float32 adapters on a frozen base of any type, activations computed again, optimiser state in 8 bits."""

import torch
from torch import nn

from policies.retoucher.model.loading import need_bitsandbytes
from portraitkit.errors import ConfigError


def prepare_training(transformer: nn.Module, *, gradient_checkpointing: bool) -> None:
    """Make the trainable parameters float32, and keep or drop activations.

    Steps of bfloat16 weights are lost to rounding once they are below 1/256 of a weight; those of a LoRA at usual learning rates are.

    Args:
        transformer: with its LoRA layers, which alone are trainable.
        gradient_checkpointing: compute activations of each block again in the backward.

    Raises:
        ConfigError: the transformer cannot do that.
    """
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if gradient_checkpointing:
        enable = getattr(transformer, "enable_gradient_checkpointing", None)
        if enable is None:
            raise ConfigError("--gradient-checkpointing: this backbone's transformer cannot; leave the option out")
        enable()


def make_optimizer(
    kind: str, parameters: list[nn.Parameter], *, learning_rate: float, epsilon: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW with betas .9 and .95, its state in float32 or, for tensors of 4096 values and more, in 8 bits.

    Args:
        kind: adamw or adamw_8bit.
        parameters: what is trained.
        learning_rate: peak.
        epsilon: added to the denominator.
        weight_decay: decoupled.

    Raises:
        ConfigError: bitsandbytes is missing.
    """
    settings = {"lr": learning_rate, "betas": (0.9, 0.95), "eps": epsilon, "weight_decay": weight_decay}
    if kind == "adamw_8bit":
        return need_bitsandbytes("--optimizer adamw_8bit", "--optimizer adamw").optim.AdamW8bit(parameters, **settings)
    return torch.optim.AdamW(parameters, **settings)
