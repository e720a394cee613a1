"""`align-retoucher --dry-run`: what a run holds on a device and needs at its peak, and what to change where it cannot fit.

The backbone's own code runs on the meta device; the judges that the run loads itself are planned beside it.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from policies.retoucher.config import RetoucherConfig
from policies.retoucher.model.architectures import WORDS, meta_backbone, parts_of, stand_in_condition
from policies.retoucher.model.training import check_guidance, check_sharding, prepare_training
from policies.retoucher.update import base_policy
from portraitkit.errors import ConfigError, WeightsError
from portraitkit.memory.plan import NF4, Change, Memory, Shards, Trained, check_fits, device_limit, print_table, set_to
from portraitkit.memory.trace import added_bytes, size_of, tensors_of
from portraitkit.memory.vlm_trace import Load, ModelSizes, ModelSpec, generation_bytes, model_sizes
from reward_models.judge.reward import split_argument
from reward_models.judge.settings import JudgeSettings, read_settings, source_of

PICTURE, PHOTO = 3, 3 + 1 + 1 + 1 + 3 + 3
"""Channels of a picture; and of a photo: itself, skin, features, opacity, anchor, residual."""
JUDGE_BATCH, MEASURED = 32, 32  # Questions that a judge answers, and photos that an evaluation measures, at once
ASSUMED_JUDGE = "Qwen/Qwen2.5-VL-7B-Instruct"  # In place of one whose architecture is not known yet: still to be trained, or a LoRA
JUDGE_WORDS = {"full": 600, "brief": 40}  # Tokens of the question's text, by the form of the answer (assumed)
BESIDE_DIFFERENCE = (192, 96)  # Height and width of each of the two pictures that a judge sees, unless `--shown as-taken`


def dry_run(config: RetoucherConfig) -> int:
    """Print the plan of a run and refuse what the run would refuse, or what cannot fit; returns the exit code.
    ConfigError: the run cannot be divided so, or cannot fit on the device; the message names the change that makes it fit."""
    config.check_sampling()
    if config.sharding != "none" and config.plan_devices == 1:
        raise ConfigError(f"--plan-devices 1: --sharding {config.sharding} divides the base among several; give --plan-devices 8, say")
    check_sharding(config, config.plan_devices)
    memory = plan_memory(config)
    base = "nf4" if config.quantize == "nf4" else "float32" if config.backbone == "tiny" else "bfloat16"
    absent = config.photos != "embedded" and not Path(config.photos).is_dir()
    evaluated = f"{config.validation_photos} and {config.held_out_photos} photos, {config.evaluation_steps} sampling steps"
    lines = [
        *([("photos", f"{config.photos}, which is not there yet")] if absent else []),
        ("backbone", f"{config.backbone}, {config.model or 'its own weights'}, base {base}, LoRA float32 of rank {config.rank}"),
        ("step", f"{config.photos_per_step} photos x {config.group_size} candidates, {config.num_steps} sampling steps"),
        ("validation, held-out", evaluated),
        ("pictures", f"{_resolution(config)} px"),
    ]
    print_table("align-retoucher", [*lines, *memory.lines()])
    check_fits(config, memory, device_limit(config.device_memory, config.device), plan_memory, CHANGES, MORE_DEVICES)
    return 0


# ---- changes that save memory, the least painful first


def _to(**values: Any) -> Change[RetoucherConfig]:
    """Set options; None where they are so already, or where the backbone or the other options do not allow it."""

    def change(config: RetoucherConfig) -> RetoucherConfig | None:
        if config.backbone == "tiny" and values.keys() & {"quantize", "offload_text_encoder", "vae_tiling", "resolution"}:
            return None
        with suppress(ConfigError):
            if (changed := set_to(config, **values)) is not None:
                check_sharding(changed, changed.plan_devices)
                return changed
        return None

    return change


def _at_most(name: str, value: int) -> Change[RetoucherConfig]:
    def change(config: RetoucherConfig) -> RetoucherConfig | None:
        now = _resolution(config) if name == "resolution" else getattr(config, name)
        return _to(**{name: value})(config) if now > value else None

    return change


def _fsdp2(devices: int) -> Change[RetoucherConfig]:
    """Divide the base among devices, with the options that must then be larger."""

    def change(config: RetoucherConfig) -> RetoucherConfig | None:
        if config.device == "cpu" or (config.sharding == "fsdp2" and config.plan_devices >= devices):
            return None
        larger = {name: max(getattr(config, name), devices) for name in ("validation_photos", "held_out_photos")}
        photos = ceil(config.photos_per_step / devices) * devices
        return _to(sharding="fsdp2", plan_devices=devices, photos_per_step=photos, **larger)(config)

    return change


CHANGES = (
    _to(offload_text_encoder=True),
    _at_most("micro_batch", 8),
    _at_most("micro_batch", 4),
    _to(gradient_checkpointing=True),
    _to(vae_tiling=True),
    _to(optimizer="adamw_8bit"),
    _at_most("micro_batch", 1),
    _to(quantize="nf4"),
    _at_most("group_size", 8),
    _at_most("group_size", 4),
    _at_most("resolution", 512),
    _at_most("resolution", 256),
)
MORE_DEVICES = tuple(_fsdp2(devices) for devices in (2, 4, 8))


# ---- the plan


def plan_memory(config: RetoucherConfig) -> Memory:
    """What one device holds and needs.

    Pictures and latents are where the policy is; only what reports show is on the CPU. Offloaded text encoders stand beside the
    transformer while they encode. A judge on the same device stays there all the time. FSDP2 divides the transformer alone."""
    gpu, offloaded, nf4 = config.device != "cpu", config.offload_text_encoder, config.quantize == "nf4"
    planned = planned_backbone(config)
    check_guidance(config, planned.backbone)
    parts, batch = planned.parts, planned.backbone.batch
    trained = Trained(tuple((p.numel(), p.element_size()) for p in planned.lora))
    shards = Shards(config.sharding, config.plan_devices)
    gathered = 2 * planned.largest_block if shards.of_weights > 1 else 0
    photos = max(config.validation_photos, config.held_out_photos)  # of the larger evaluation
    batched, drawn = config.photos_per_step, _drawn_steps(config)
    groups = min(batched, max(1, config.micro_batch // config.group_size))  # rolled out together, or as many of them as a forward takes
    rolled_out, evaluated = min(config.micro_batch, groups * config.group_size), min(config.micro_batch, photos)
    rows = ceil(batched / config.updates_per_step) * (1 if config.shared_noise and drawn == 1 else config.group_size)
    updated = min(rows, config.micro_batch)  # of the largest forward with gradients
    first = min(photos, batch)  # that an evaluation encodes at once, before anything is trained
    beside = _picture_bytes(config, updated)
    judges, judging, said = plan_judges(config, planned.backbone.resolution)
    held = {
        "weights of the transformer": (planned.quantised if nf4 else parts["transformer"]) // shards.of_weights + gathered,
        "autoencoder": parts["autoencoder"],
        "text encoders": 0 if offloaded else parts["text encoders"],
        "LoRA": trained.size,
        "LoRA, moving average and best": 2 * trained.size,
        "gradients": trained.size,
        "optimiser states": trained.states(config.optimizer, Shards()),
        "photos and latents": beside["at rest"] + beside["training"],
        **judges,
    }
    unpacked = planned.largest_linear if nf4 else 0
    together = ", the encoders beside the transformer" if offloaded else ""
    phases = {
        f"encoding text{together}": text_bytes(planned) + (parts["text encoders"] if offloaded else 0),
        f"encoding {first} photos for evaluations": max(condition_bytes(planned, first) + beside["loading"] - beside["training"], 0),
        "encoding photos": condition_bytes(planned, min(config.photos_per_step, batch)),
        f"rollout, {rolled_out} candidates at once": rollout_bytes(planned, rolled_out) + unpacked,
        "decoding": decode_bytes(planned, min(max(rolled_out, evaluated), batch)),
        **judging,
        f"update, {updated} candidates at once": update_bytes(planned, updated, config.kl_beta > 0) + unpacked + beside["update"],
        "optimiser step": trained.size if gpu else trained.largest,
        f"evaluation, {evaluated} photos at once": rollout_bytes(planned, evaluated) + unpacked + beside["evaluation"],
    }
    notes = {"activations, checkpointing": "on" if config.gradient_checkpointing else "off", "attention": "fused (SDPA), no score matrix"}
    notes |= said
    notes |= {"split": f"{shards.kind} over {shards.devices} devices (planned only)"} if shards.devices > 1 else {}
    return Memory(planned.parameters, trained.values, held, phases, gpu, notes)


def _resolution(config: RetoucherConfig) -> int:
    return planned_backbone(config).backbone.resolution


def _drawn_steps(config: RetoucherConfig) -> int:
    return len(config.scheduler([1 - step / config.num_steps for step in range(config.num_steps + 1)], 0).drawn_steps)


def _picture_bytes(config: RetoucherConfig, updated: int) -> dict[str, int]:
    """Bytes of pictures and latents: at rest, and what an update and an evaluation add.

    At rest: the evaluations' photos with what rewards know of them, their noise and reference; a GPU has those at work alone, and all as
    they are loaded. Training adds the same of its photos, and each candidate's latents: the last ones, and of each drawn step those before
    and after it, its noise and its mean. An update keeps every candidate's picture, for local credit, and its rows' residuals.
    An evaluation keeps its pictures and the parts that they are joined of, and on the CPU those of before training, too.
    """
    latent, channel = 4 * planned_backbone(config).latents(1).numel(), 4 * _resolution(config) ** 2
    candidates, photos = config.photos_per_step * config.group_size, config.validation_photos + config.held_out_photos
    gpu, at_work = config.device != "cpu", min(MEASURED, config.held_out_photos)
    return {
        "at rest": 0 if gpu else photos * (PHOTO * channel + 2 * latent),
        "loading": config.held_out_photos * PHOTO * channel if gpu else 0,
        "training": config.photos_per_step * PHOTO * channel + candidates * (1 + 4 * _drawn_steps(config)) * latent,
        "update": (candidates + updated) * PICTURE * channel,
        "evaluation": at_work * (PHOTO + 2 * PICTURE) * channel if gpu else 3 * config.held_out_photos * PICTURE * channel,
    }


# ---- the backbone on the meta device


@dataclass(frozen=True, eq=False)
class PlannedBackbone:
    """A backbone with its LoRA, ready to be trained; bytes of its base by part, of the transformer in NF4, of its largest pieces."""

    backbone: Any
    lora: list[nn.Parameter]
    parameters: int
    parts: dict[str, int]
    quantised: int
    largest_linear: int
    largest_block: int
    known: dict[Any, int]  # what was added, by what it was for

    @property
    def tiled(self) -> bool:
        """Whether the autoencoder now works tile by tile."""
        return self.backbone.pipeline.vae.use_tiling

    def latents(self, rows: int) -> torch.Tensor:
        """(rows, tokens, channels) without data."""
        return torch.empty(rows, self.backbone.side**2, self.backbone.transformer.config.in_channels, device="meta")

    def added(self, what: Any, compute: Callable[[], Any], *networks: nn.Module) -> int:
        """Bytes that a computation adds to the weights and gradients that are there, see `added_bytes`; computed once for equal `what`."""
        if what in self.known:
            return self.known[what]
        held = [t for modules in parts_of(self.backbone).values() for module in modules for t in tensors_of(module)]
        held += [p.grad for p in self.lora if p.grad is not None]
        with torch.device("meta"):
            return self.known.setdefault(what, added_bytes(held, compute, *networks))


def planned_backbone(config: RetoucherConfig) -> PlannedBackbone:
    """That of a run; built once for all that differ in what can be switched: tiling and checkpointing."""
    planned = _built(config.backbone, config.model, config.resolution, config.guidance, config.rank)
    planned.backbone.pipeline.vae.use_tiling, transformer = config.vae_tiling, planned.backbone.transformer
    (transformer.enable_gradient_checkpointing if config.gradient_checkpointing else transformer.disable_gradient_checkpointing)()
    return planned


@lru_cache(maxsize=4)
def _built(name: str, model: str | None, resolution: int | None, guidance: float | None, rank: int) -> PlannedBackbone:
    backbone = meta_backbone(name, model, resolution, guidance=guidance)
    transformer = backbone.transformer
    parts = {name: size_of(t for module in modules for t in tensors_of(module)) for name, modules in parts_of(backbone).items()}
    parameters = sum(p.numel() for p in transformer.parameters())
    linear = [module.weight.numel() for module in transformer.modules() if isinstance(module, nn.Linear)]
    width = next(transformer.parameters()).element_size()
    quantised = int(sum(linear) * NF4) + parts["transformer"] - sum(linear) * width
    block = max(size_of(tensors_of(m)) for m in transformer.modules() if type(m).__name__.endswith("Block"))
    lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=backbone.lora_targets, init_lora_weights="gaussian")
    with torch.device("meta"):  # peft would draw the LoRA's numbers on the CPU
        transformer.add_adapter(lora)
    prepare_training(transformer, gradient_checkpointing=False)
    trained = [p for p in transformer.parameters() if p.requires_grad]
    return PlannedBackbone(backbone, trained, parameters, parts, quantised, max(linear) * width, block, {})


@torch.no_grad()
def condition_bytes(planned: PlannedBackbone, photos: int) -> int:
    """Encoding photos; and decoding them again, where the backbone keeps what its autoencoder loses."""
    images = torch.empty(photos, 3, planned.backbone.resolution, planned.backbone.resolution, device="meta")
    encoding = planned.added(("encode", photos, planned.tiled), lambda: planned.backbone.encode(images))
    return max(encoding, decode_bytes(planned, photos) if planned.backbone.add_residual else 0)


@torch.no_grad()
def decode_bytes(planned: PlannedBackbone, pictures: int) -> int:
    return planned.added(("decode", pictures, planned.tiled), lambda: planned.backbone._pictures(planned.latents(pictures)))


@torch.no_grad()
def text_bytes(planned: PlannedBackbone) -> int:
    backbone = planned.backbone

    def read_prompt(module: nn.Module) -> Any:
        """One prompt through a text encoder; of one that sees, the language part."""
        if hasattr(backbone, "text_tokens"):
            longest = getattr(module.config, "max_position_embeddings", backbone.text_tokens)
            length, how = min(longest, backbone.text_tokens), {}
            if hasattr(module, "lm_head"):  # as FLUX.2's pipeline calls Qwen3; the mask is made ready, since making it looks at values
                mask = torch.empty(1, 1, length, length, dtype=torch.bool)
                how = {"output_hidden_states": True, "use_cache": False, "attention_mask": mask}
            return module(torch.empty(1, length, dtype=torch.long), **how)
        language: Any = module.get_submodule("model.language_model")
        length = WORDS + (backbone.prompt_side // 28) ** 2
        embedded = torch.empty(1, length, language.config.hidden_size, dtype=next(module.parameters()).dtype)
        positions = torch.empty(3, 1, length, dtype=torch.long)
        return language(inputs_embeds=embedded, position_ids=positions, use_cache=False).last_hidden_state

    return max(planned.added(module, partial(read_prompt, module), module) for module in backbone.text_encoders)


@torch.no_grad()
def rollout_bytes(planned: PlannedBackbone, rows: int) -> int:
    """One evaluation of the transformer without gradients."""
    backbone, condition = planned.backbone, stand_in_condition(planned.backbone, rows)
    return planned.added(("rollout", rows), lambda: backbone.velocity(planned.latents(rows), 0.5, condition), backbone.transformer)


def update_bytes(planned: PlannedBackbone, rows: int, kl: bool) -> int:
    """One forward and backward through the policy, with a loss of the shape of the run's own (`policies.retoucher.update`)."""
    backbone = planned.backbone

    def compute() -> None:
        condition = stand_in_condition(backbone, rows)
        x, noise, old = (planned.latents(rows) for _ in range(3))
        mean = x - backbone.velocity(x, 0.5, condition)
        loss = ((mean - old) * noise).flatten(1).mean(1).exp().sum()
        if kl:
            with torch.no_grad(), base_policy(backbone):
                reference = x - backbone.velocity(x, 0.5, condition)
            loss = loss + (mean - reference).square().sum()
        loss.backward()

    for parameter in planned.lora:
        parameter.grad = torch.empty_like(parameter)
    try:
        return planned.added(("update", rows, kl, backbone.transformer.is_gradient_checkpointing), compute, backbone.transformer)
    finally:
        for parameter in planned.lora:
            parameter.grad = None


# ---- judges


def plan_judges(config: RetoucherConfig, resolution: int) -> tuple[dict[str, int], dict[str, int], dict[str, str]]:
    """Bytes that judges in this process hold, bytes that they take while they judge, and what is to be said of them; by name.

    None with `--reward-worker`, nor one behind an address.
    ConfigError: a judge's name is none.
    WeightsError: its `judge.json` is damaged."""
    held, phases, notes = dict[str, int](), dict[str, int](), dict[str, str]()
    judging = f"judging, {JUDGE_BATCH} questions at once"
    for name in (name for name in config.all_rewards if name.startswith("judge:")):
        source, _ = split_argument(name.removeprefix("judge:"))
        if config.reward_worker or source.startswith(("http://", "https://")):
            notes[name] = "elsewhere, not counted"
        elif source.startswith("vllm:"):
            notes[name] = "vLLM takes 9 tenths of a device: give it one of its own by --reward-worker; not counted"
        else:
            spec, sizes = _judge_model(source_of(source), gpu=config.device != "cpu")
            if spec.source == ASSUMED_JUDGE != source:
                notes[name] = f"not known here, planned as {ASSUMED_JUDGE}"
            held[f"{name}, weights"] = sizes.weights
            settings, side = read_settings(Path(source_of(source))) or JudgeSettings(), sizes.token_side
            beside = settings.shown != "as-taken"
            pictures, height, width = (2, *BESIDE_DIFFERENCE) if beside else (3, resolution, resolution)
            tokens = ceil(height / side) * ceil(width / side)
            load = Load(JUDGE_BATCH, pictures, tokens, JUDGE_WORDS[settings.form], settings.max_tokens)
            phases[judging] = max(phases.get(judging, 0), generation_bytes(spec, load))
    return held, phases, notes


def _judge_model(source: str, *, gpu: bool) -> tuple[ModelSpec, ModelSizes]:
    """A judge's model, or the assumed one in its place."""
    for name in (source, ASSUMED_JUDGE):
        spec = ModelSpec(name, "bfloat16" if gpu else "float32", gpu=gpu)
        with suppress(WeightsError):
            if (sizes := model_sizes(spec)) is not None:
                return spec, sizes
    raise AssertionError(f"{ASSUMED_JUDGE}: its architecture is built in")
