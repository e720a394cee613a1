"""Floating-point operations of the models, counted on the meta device by torch's own counter.

A multiplication and an addition are two. Counted are matrix products, convolutions and attention (without a discount for causal masks) as
they are needed: what activation checkpointing computes again is left out, and so are decoding, rewards and the optimiser. That makes them
model FLOPs; over a device's peak they are the model FLOPs utilisation of PaLM (arXiv 2204.02311, appendix B).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from policies.retoucher.config import RetoucherConfig
from policies.retoucher.model.architectures import meta_backbone, stand_in_condition
from portraitkit.memory.trace import by_depth, stacks_of
from portraitkit.memory.vlm_trace import Load, hidden_states
from portraitkit.vlm.model import DTYPES, meta_model
from portraitkit.vlm.trainer_arguments import lora_arguments
from portraitkit.vlm.trainer_options import TrainerOptions


@dataclass(frozen=True)
class Flops:
    """Of one picture, or of one answer."""

    forward: int
    """Of an evaluation without gradients; of an answer's generation."""
    update: int
    """Of a forward and backward. Of a frozen base, gradients of the activations alone."""


def retoucher_flops(config: RetoucherConfig) -> Flops:
    """Of one picture through the transformer with its LoRA.

    Args:
        config: a backbone whose architecture is known, resolution and rank.
    """
    backbone = meta_backbone(config.backbone, config.model, config.resolution, guidance=config.guidance)
    backbone.transformer.add_adapter(LoraConfig(r=config.rank, target_modules=backbone.lora_targets))
    condition = stand_in_condition(backbone, 1)
    x = torch.empty_like(condition.reference)
    stacks = stacks_of(backbone.transformer)

    def forward() -> None:
        with torch.no_grad():
            backbone.velocity(x, 0.5, condition)

    def update() -> None:
        backbone.velocity(x, 0.5, condition).sum().backward()

    return Flops(*(by_depth(stacks, lambda run=run: counted(run)) for run in (forward, update)))


def vlm_flops(source: str, options: TrainerOptions, load: Load) -> Flops:
    """Of one answer of `load.answer` tokens, as transformers generates it: the prompt is read for each answer, then token by token.

    Args:
        source: whose architecture is known.
        options: type of the weights, LoRA.
        load: one row.
    """
    model = meta_model(source).to(DTYPES[options.dtype])
    whole = get_peft_model(model, lora_arguments(options)) if options.rank else model
    base = whole.get_base_model() if options.rank else model
    text = model.config.get_text_config()
    stacks = [stack for stack in stacks_of(base) if type(stack[0]).__name__.endswith("DecoderLayer")]  # the tower's blocks are not alike
    head = 2 * text.hidden_size * text.vocab_size

    def read() -> None:
        with torch.no_grad():
            hidden_states(base, load, cache=True)

    def update() -> None:
        hidden_states(base, load).sum().backward()

    weights = sum(p.numel() for name, p in base.model.language_model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name)
    attended = sum(range(load.prompt + 1, load.length))  # by all tokens that are fed back: the last one is not
    attention = 4 * text.num_hidden_layers * text.hidden_size * attended
    steps = load.answer - 1
    generated = by_depth(stacks, lambda: counted(read)) + steps * 2 * weights + attention + load.answer * head
    return Flops(generated, by_depth(stacks, lambda: counted(update)) + 2 * load.answer * head)


def counted(run: Callable[[], None]) -> int:
    """Of a computation."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
