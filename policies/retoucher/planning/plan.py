"""What a run of `align-retoucher` holds on a device and needs at its peak, by its own code on the meta device."""

from functools import lru_cache
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from policies.retoucher.config import RetoucherConfig
from policies.retoucher.model.architectures import WORDS, meta_backbone, parts_of, stand_in_condition
from policies.retoucher.model.memory import prepare_training
from policies.retoucher.planning.plan_judge import plan_judges
from policies.retoucher.rollout import StepPlan, plan_steps
from policies.retoucher.update import base_policy
from portraitkit.memory.plan import NF4, Memory, Shards, Trained
from portraitkit.memory.trace import by_depth, size_of, stacks_of, tensors_of, tracing

PHOTO_CHANNELS = 3 + 1 + 1 + 1 + 3
"""Of a photo on the host: itself, skin, features, opacity, anchor. Each candidate's picture stands beside a copy of them."""


def plan_memory(config: RetoucherConfig) -> Memory:
    """What one device holds and needs.

    Pictures and latents count where the run is on the CPU; with a GPU they stay on the host. Offloaded text encoders stand beside the
    transformer while they encode. A judge on the same device stays there all the time. FSDP2 divides the transformer alone.

    Raises:
        ConfigError: no built-in backbone, or a judge's name is none.
        WeightsError: a folder holds no model, or another one.
    """
    gpu = config.device != "cpu"
    traced, judges = _traced(config), plan_judges(config, planned_backbone(config).resolution)
    shards = Shards(config.sharding, config.plan_devices)
    base = traced["transformer"] if config.quantize == "none" else traced["quantised transformer"]
    gathered = 2 * traced["largest block"] if shards.of_weights > 1 else 0
    unpacked = traced["largest linear"] if config.quantize == "nf4" else 0
    trained: Trained = traced["trained"]
    adapter, moved = trained.size, config.offload_text_encoder
    held = {
        "weights of the transformer": base // shards.of_weights + gathered,
        "autoencoder": traced["autoencoder"],
        "text encoders": 0 if moved else traced["text encoders"],
        "LoRA": adapter,
        "LoRA, moving average and best": 2 * adapter,
        "gradients": adapter,
        "optimiser states": trained.states(config.optimizer, Shards()),
        "photos and latents": 0 if gpu else _latents(config, traced),
        **judges.held,
    }
    reading = "encoding text, the encoders beside the transformer" if moved else "encoding text"
    phases = {
        reading: traced["encode text"] + (traced["text encoders"] if moved else 0),
        "encoding photos": traced["encode"],
        f"rollout, {_rollout_rows(config)} candidates at once": traced["rollout"] + unpacked,
        "decoding": traced["decode"],
        **judges.phases,
        f"update, {_update_rows(config)} candidates at once": traced["update"] + unpacked + (0 if gpu else _pictures(config, traced)),
        "optimiser step": adapter if gpu else trained.largest,
        f"evaluation, {_evaluation_rows(config)} photos at once": traced["evaluation"] + unpacked + (0 if gpu else _seen(config, traced)),
    }
    notes = {"activations, checkpointing": "on" if config.gradient_checkpointing else "off", "attention": "fused (SDPA), no score matrix"}
    notes |= judges.notes
    if shards.devices > 1:
        notes["split"] = f"{shards.kind} over {shards.devices} devices (planned only)"
    return Memory(traced["parameters"], trained.values, held, phases, gpu, notes)


# ---- tracing


def _update_rows(config: RetoucherConfig) -> int:
    """Candidates (or photos, where their first step is shared) of the largest forward with gradients."""
    photos = -(-config.photos_per_step // config.updates_per_step)
    shared = config.shared_noise and len(_plan(config).drawn) == 1
    return min(photos if shared else photos * config.group_size, config.micro_batch)


def _rolled_rows(config: RetoucherConfig) -> int:
    """Candidates of the photos that are rolled out and decoded together."""
    return min(config.photos_per_step, max(1, config.micro_batch // config.group_size)) * config.group_size


def _rollout_rows(config: RetoucherConfig) -> int:
    return min(config.micro_batch, _rolled_rows(config))


def _evaluation_rows(config: RetoucherConfig) -> int:
    """Photos of the larger evaluation set that are retouched and decoded together."""
    return min(config.micro_batch, max(config.validation_photos, config.held_out_photos))


def _plan(config: RetoucherConfig) -> StepPlan:
    return plan_steps(config, [1 - step / config.num_steps for step in range(config.num_steps + 1)], 0)


Made = tuple[str, str | None, int | None, float | None, bool]
"""What a backbone is made of: name, model, resolution, guidance, tiling."""


def _made_of(config: RetoucherConfig) -> Made:
    return config.backbone, config.model, config.resolution, config.guidance, config.vae_tiling


@lru_cache(maxsize=4)
def _made(made: Made) -> Any:
    name, model, resolution, guidance, tiling = made
    return meta_backbone(name, model, resolution, guidance=guidance, vae_tiling=tiling)


def planned_backbone(config: RetoucherConfig) -> Any:
    """The run's backbone on the meta device."""
    return _made(_made_of(config))


def _latents(config: RetoucherConfig, traced: dict[str, Any]) -> int:
    """Photos of a step and of both evaluation sets with their residuals, and of each candidate its latents and those of its drawn steps."""
    evaluated = config.validation_photos + config.held_out_photos
    photos = (config.photos_per_step + evaluated) * (PHOTO_CHANNELS + 3) * traced["resolution"] ** 2 * 4
    candidates = config.photos_per_step * config.group_size * (1 + 3 * len(_plan(config).drawn))
    return photos + (candidates + 2 * evaluated) * traced["latent"]


def _pictures(config: RetoucherConfig, traced: dict[str, Any]) -> int:
    """Candidates and the copies of their photos."""
    return config.photos_per_step * config.group_size * (3 + PHOTO_CHANNELS) * traced["resolution"] ** 2 * 4


def _seen(config: RetoucherConfig, traced: dict[str, Any]) -> int:
    """The held-out photos' pictures before and after training, those of the parts beside them."""
    return 3 * config.held_out_photos * 3 * traced["resolution"] ** 2 * 4


def _traced(config: RetoucherConfig) -> dict[str, Any]:
    """Bytes by name, of weights and of what computations add to them. Each is traced once for what it depends on."""
    made, backbone = _made_of(config), planned_backbone(config)
    adapted = (made, config.rank, config.gradient_checkpointing)
    return _sizes(made) | {
        "trained": Trained(tuple((p.numel(), p.element_size()) for p in _trained(_adapted(*adapted)))),
        "encode": _encode(made, min(config.photos_per_step, backbone.batch)),
        "decode": _decode(made, min(max(_rollout_rows(config), _evaluation_rows(config)), backbone.batch)),
        "encode text": _text(made),
        "rollout": _rollout(*adapted, _rollout_rows(config)),
        "evaluation": _rollout(*adapted, _evaluation_rows(config)),
        "update": _updated(*adapted, _update_rows(config), config.kl_beta > 0),
    }


@lru_cache(maxsize=4)
def _sizes(made: Made) -> dict[str, Any]:
    """What needs no tracing."""
    backbone = _made(made)
    transformer = backbone.transformer
    sizes: dict[str, Any] = {part: size_of(t for module in some for t in tensors_of(module)) for part, some in parts_of(backbone).items()}
    linear = [module.weight.numel() for module in transformer.modules() if isinstance(module, nn.Linear)]
    width = next(transformer.parameters()).element_size()
    return sizes | {
        "parameters": sum(p.numel() for p in transformer.parameters()),
        "quantised transformer": int(sum(linear) * NF4) + sizes["transformer"] - sum(linear) * width,
        "largest linear": max(linear) * width,
        "largest block": max(size_of(tensors_of(m)) for m in transformer.modules() if type(m).__name__.endswith("Block")),
        "latent": 4 * _latent(backbone)[0] * _latent(backbone)[1],
        "resolution": backbone.resolution,
    }


def _latent(backbone: Any) -> tuple[int, int]:
    return backbone.side**2, backbone.transformer.config.in_channels


@lru_cache(maxsize=2)
def _adapted(made: Made, rank: int, checkpointing: bool) -> Any:
    """A backbone of its own with its LoRA, ready to be trained."""
    backbone = _made.__wrapped__(made)
    lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=backbone.lora_targets, init_lora_weights="gaussian")
    backbone.transformer.add_adapter(lora)
    prepare_training(backbone.transformer, gradient_checkpointing=checkpointing)
    return backbone


def _trained(backbone: Any) -> list[nn.Parameter]:
    return [p for p in backbone.transformer.parameters() if p.requires_grad]


def _extra(backbone: Any, compute: Any, *networks: nn.Module) -> int:
    """Bytes that a computation adds to the weights and gradients that are there."""
    held = [t for modules in parts_of(backbone).values() for module in modules for t in tensors_of(module)]
    held += [p.grad for p in _trained(backbone) if p.grad is not None]

    def once() -> int:
        with tracing(held) as live:
            before = live.now
            result = compute()
        del result
        return live.peak - before

    return by_depth([stack for network in networks for stack in stacks_of(network)], once)


@lru_cache(maxsize=16)
def _encode(made: Made, photos: int) -> int:
    backbone = _made(made)
    with torch.device("meta"), torch.no_grad():
        images = torch.empty(photos, 3, backbone.resolution, backbone.resolution)
        return _extra(backbone, lambda: backbone.encode(images))


@lru_cache(maxsize=16)
def _decode(made: Made, pictures: int) -> int:
    backbone = _made(made)
    with torch.device("meta"), torch.no_grad():
        return _extra(backbone, lambda: backbone._pictures(torch.empty(pictures, *_latent(backbone))))


@lru_cache(maxsize=4)
def _text(made: Made) -> int:
    backbone = _made(made)
    with torch.device("meta"), torch.no_grad():
        return max(_extra(backbone, lambda module=module: _read_text(module, backbone), module) for module in backbone.text_encoders)


@lru_cache(maxsize=32)
def _rollout(made: Made, rank: int, checkpointing: bool, rows: int) -> int:
    backbone = _adapted(made, rank, checkpointing)
    latent = _latent(backbone)
    with torch.device("meta"), torch.no_grad():
        given = stand_in_condition(backbone, rows, "meta")
        return _extra(backbone, lambda: backbone.velocity(torch.empty(rows, *latent), 0.5, given), backbone.transformer)


@lru_cache(maxsize=32)
def _updated(made: Made, rank: int, checkpointing: bool, rows: int, kl: bool) -> int:
    backbone = _adapted(made, rank, checkpointing)
    for parameter in _trained(backbone):
        parameter.grad = torch.empty_like(parameter)
    try:
        return _extra(backbone, lambda: _update(backbone, rows, _latent(backbone), kl), backbone.transformer)
    finally:
        for parameter in _trained(backbone):
            parameter.grad = None


def _update(backbone: Any, rows: int, latent: tuple[int, int], kl: bool) -> None:
    """One forward and backward through the policy, with a loss of the shape of the run's own (`policies.retoucher.update`)."""
    condition = stand_in_condition(backbone, rows, "meta")
    with torch.device("meta"):
        x, noise, old = (torch.empty(rows, *latent) for _ in range(3))
    mean = x - backbone.velocity(x, 0.5, condition)
    loss = ((mean - old) * noise).flatten(1).mean(1).exp().sum()
    if kl:
        with torch.no_grad(), base_policy(backbone):
            reference = x - backbone.velocity(x, 0.5, condition)
        loss = loss + (mean - reference).square().sum()
    loss.backward()


def _read_text(module: nn.Module, backbone: Any) -> Any:
    """One prompt through a text encoder; of one that sees, the language part."""
    if hasattr(backbone, "text_tokens"):
        longest = getattr(module.config, "max_position_embeddings", backbone.text_tokens)
        return module(torch.empty(1, min(longest, backbone.text_tokens), dtype=torch.long))
    language: Any = module.get_submodule("model.language_model")
    length = WORDS + (backbone.prompt_side // 28) ** 2
    embedded = torch.empty(1, length, language.config.hidden_size, dtype=next(module.parameters()).dtype)
    positions = torch.empty(3, 1, length, dtype=torch.long)
    return language(inputs_embeds=embedded, position_ids=positions, use_cache=False).last_hidden_state
