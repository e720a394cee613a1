"""Bytes that a backbone's weights and computations take, by its own code on the meta device; each is traced once for what it depends on."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from torch import nn

from policies.retoucher.model.architectures import WORDS, meta_backbone, parts_of, stand_in_condition
from policies.retoucher.model.training import prepare_training
from policies.retoucher.update import base_policy
from portraitkit.memory.plan import NF4, Trained
from portraitkit.memory.trace import added_bytes, size_of, tensors_of


class Spec(NamedTuple):
    """What a backbone is made of, as `meta_backbone` takes it."""

    name: str
    model: str | None
    resolution: int | None
    guidance: float | None
    vae_tiling: bool


@lru_cache(maxsize=4)
def planned_backbone(spec: Spec) -> Any:
    return meta_backbone(*spec[:3], guidance=spec.guidance, vae_tiling=spec.vae_tiling)


@lru_cache(maxsize=2)
def _adapted(spec: Spec, rank: int, checkpointing: bool) -> Any:
    """A second backbone, with its LoRA, ready to be trained."""
    backbone = planned_backbone.__wrapped__(spec)
    lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=backbone.lora_targets, init_lora_weights="gaussian")
    backbone.transformer.add_adapter(lora)
    prepare_training(backbone.transformer, gradient_checkpointing=checkpointing)
    return backbone


@lru_cache(maxsize=4)
def lora_sizes(spec: Spec, rank: int, checkpointing: bool) -> Trained:
    """Sizes of the LoRA's tensors."""
    return Trained(tuple((p.numel(), p.element_size()) for p in _trained(_adapted(spec, rank, checkpointing))))


def _trained(backbone: Any) -> list[nn.Parameter]:
    return [p for p in backbone.transformer.parameters() if p.requires_grad]


def latent_shape(spec: Spec) -> tuple[int, int]:
    """Tokens and channels."""
    backbone = planned_backbone(spec)
    return backbone.side**2, backbone.transformer.config.in_channels


@lru_cache(maxsize=4)
def weight_bytes(spec: Spec) -> dict[str, int]:
    """Bytes (of "parameters", values) that need no tracing."""
    backbone = planned_backbone(spec)
    transformer = backbone.transformer
    sizes = {name: size_of(t for module in modules for t in tensors_of(module)) for name, modules in parts_of(backbone).items()}
    linear = [module.weight.numel() for module in transformer.modules() if isinstance(module, nn.Linear)]
    width = next(transformer.parameters()).element_size()
    return sizes | {
        "parameters": sum(p.numel() for p in transformer.parameters()),
        "quantised transformer": int(sum(linear) * NF4) + sizes["transformer"] - sum(linear) * width,
        "largest linear": max(linear) * width,
        "largest block": max(size_of(tensors_of(m)) for m in transformer.modules() if type(m).__name__.endswith("Block")),
    }


def _added(backbone: Any, compute: Callable[[], Any], *networks: nn.Module) -> int:
    """Bytes that a computation adds to the weights and gradients that are there."""
    held = [t for modules in parts_of(backbone).values() for module in modules for t in tensors_of(module)]
    held += [p.grad for p in _trained(backbone) if p.grad is not None]
    return added_bytes(held, compute, *networks)


@lru_cache(maxsize=16)
def encode_bytes(spec: Spec, photos: int) -> int:
    backbone = planned_backbone(spec)
    with torch.device("meta"), torch.no_grad():
        images = torch.empty(photos, 3, backbone.resolution, backbone.resolution)
        return _added(backbone, lambda: backbone.encode(images))


@lru_cache(maxsize=16)
def decode_bytes(spec: Spec, pictures: int) -> int:
    backbone = planned_backbone(spec)
    with torch.device("meta"), torch.no_grad():
        return _added(backbone, lambda: backbone._pictures(torch.empty(pictures, *latent_shape(spec))))


@lru_cache(maxsize=4)
def text_bytes(spec: Spec) -> int:
    backbone = planned_backbone(spec)
    with torch.device("meta"), torch.no_grad():
        return max(_added(backbone, lambda module=module: _read_prompt(module, backbone), module) for module in backbone.text_encoders)


def _read_prompt(module: nn.Module, backbone: Any) -> Any:
    """One prompt through a text encoder; of one that sees, the language part."""
    if hasattr(backbone, "text_tokens"):
        longest = getattr(module.config, "max_position_embeddings", backbone.text_tokens)
        return module(torch.empty(1, min(longest, backbone.text_tokens), dtype=torch.long))
    language: Any = module.get_submodule("model.language_model")
    length = WORDS + (backbone.prompt_side // 28) ** 2
    embedded = torch.empty(1, length, language.config.hidden_size, dtype=next(module.parameters()).dtype)
    positions = torch.empty(3, 1, length, dtype=torch.long)
    return language(inputs_embeds=embedded, position_ids=positions, use_cache=False).last_hidden_state


@lru_cache(maxsize=32)
def rollout_bytes(spec: Spec, rank: int, checkpointing: bool, rows: int) -> int:
    """One evaluation of the transformer without gradients."""
    backbone = _adapted(spec, rank, checkpointing)
    with torch.device("meta"), torch.no_grad():
        condition = stand_in_condition(backbone, rows, "meta")
        return _added(backbone, lambda: backbone.velocity(torch.empty(rows, *latent_shape(spec)), 0.5, condition), backbone.transformer)


@lru_cache(maxsize=32)
def update_bytes(spec: Spec, rank: int, checkpointing: bool, rows: int, kl: bool) -> int:
    """One forward and backward through the policy, with a loss of the shape of the run's own (`policies.retoucher.update`)."""
    backbone = _adapted(spec, rank, checkpointing)

    def compute() -> None:
        condition = stand_in_condition(backbone, rows, "meta")
        with torch.device("meta"):
            x, noise, old = (torch.empty(rows, *latent_shape(spec)) for _ in range(3))
        mean = x - backbone.velocity(x, 0.5, condition)
        loss = ((mean - old) * noise).flatten(1).mean(1).exp().sum()
        if kl:
            with torch.no_grad(), base_policy(backbone):
                reference = x - backbone.velocity(x, 0.5, condition)
            loss = loss + (mean - reference).square().sum()
        loss.backward()

    for parameter in _trained(backbone):
        parameter.grad = torch.empty_like(parameter)
    try:
        return _added(backbone, compute, backbone.transformer)
    finally:
        for parameter in _trained(backbone):
            parameter.grad = None
