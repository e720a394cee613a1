"""`align-retoucher --dry-run`: what a run holds on a device and needs at its peak, and what to change where it cannot fit.

The backbone's own code runs on the meta device; the judges that the run loads itself are planned beside it.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any

from policies.retoucher.config import RetoucherConfig
from policies.retoucher.model.traces import (
    Spec,
    decode_bytes,
    encode_bytes,
    latent_shape,
    lora_sizes,
    planned_backbone,
    rollout_bytes,
    text_bytes,
    update_bytes,
    weight_bytes,
)
from policies.retoucher.model.training import check_sharding
from portraitkit.errors import ConfigError, WeightsError
from portraitkit.memory.plan import Change, Memory, Shards, check_fits, device_limit, print_table
from portraitkit.memory.vlm_trace import Load, ModelSizes, ModelSpec, generation_bytes, model_sizes
from reward_models.judge.reward import split_argument
from reward_models.judge.settings import JudgeSettings, read_settings, source_of

PHOTO_CHANNELS = 3 + 1 + 1 + 1 + 3
"""Of a photo on the host: itself, skin, features, opacity, anchor. Each candidate's picture stands beside a copy of them."""
JUDGE_BATCH = 32
"""Questions that a judge answers at once (`reward_models.judge.judge.load_judge`)."""
ASSUMED_JUDGE = "Qwen/Qwen2.5-VL-7B-Instruct"
"""In place of a judge whose architecture is not known yet: a folder that is still to be trained, or a LoRA."""
JUDGE_WORDS = {"full": 600, "brief": 40}
"""Tokens of the question's text, by the form of the answer (assumed)."""
BESIDE_DIFFERENCE = (192, 96)
"""Height and width of each of the two pictures that a judge with `--shown beside-difference` sees."""
Apply = Callable[[RetoucherConfig], RetoucherConfig | None]


def dry_run(config: RetoucherConfig) -> int:
    """Print the plan of a run and refuse what the run would refuse, or what cannot fit; returns the exit code.

    Raises:
        ConfigError: the run cannot be divided so, or cannot fit on the device; the message names the change that makes it fit.
    """
    config.check_sampling()
    if config.sharding != "none" and config.plan_devices == 1:
        raise ConfigError(
            f"--plan-devices 1: --sharding {config.sharding} divides the base among several; give --plan-devices 8, for example"
        )
    check_sharding(config, config.plan_devices)
    memory = plan_memory(config)
    print_table("align-retoucher", [*_recipe_lines(config), *memory.lines()])
    check_fits(config, memory, device_limit(config.device_memory, config.device), changes(config), plan_memory)
    return 0


def _recipe_lines(config: RetoucherConfig) -> list[tuple[str, str]]:
    base = "nf4" if config.quantize == "nf4" else "float32" if config.backbone == "tiny" else "bfloat16"
    absent = config.photos != "embedded" and not Path(config.photos).is_dir()
    evaluated = f"{config.validation_photos} and {config.held_out_photos} photos, {config.evaluation_steps} sampling steps"
    return [
        *([("photos", f"{config.photos}, which is not there yet")] if absent else []),
        ("backbone", f"{config.backbone}, {config.model or 'its own weights'}, base {base}, LoRA float32 of rank {config.rank}"),
        ("step", f"{config.photos_per_step} photos x {config.group_size} candidates, {config.num_steps} sampling steps"),
        ("validation, held-out", evaluated),
        ("pictures", f"{_resolution(config)} px"),
    ]


# ---- changes that save memory


def changes(config: RetoucherConfig) -> tuple[Change[RetoucherConfig], ...]:
    """What may be changed to make a run fit, the least painful first, more devices last. The words are options as they are typed."""
    return (
        Change("--offload-text-encoder", _to(offload_text_encoder=True)),
        *(Change(f"--micro-batch {rows}", _at_most("micro_batch", rows)) for rows in (8, 4)),
        Change("--gradient-checkpointing", _to(gradient_checkpointing=True)),
        Change("--vae-tiling", _to(vae_tiling=True)),
        Change("--optimizer adamw_8bit", _to(optimizer="adamw_8bit")),
        Change("--micro-batch 1", _at_most("micro_batch", 1)),
        Change("--quantize nf4", _to(quantize="nf4")),
        *(Change(f"--group-size {size}", _at_most("group_size", size)) for size in (8, 4)),
        *(Change(f"--resolution {side}", _at_most("resolution", side)) for side in (512, 256)),
        *(Change(_fsdp2_words(config, devices), _fsdp2(devices), more_devices=True) for devices in (2, 4, 8)),
    )


def _to(**values: Any) -> Apply:
    """Set options; None where they are so already, or where the backbone or the other options do not allow it."""

    def apply(config: RetoucherConfig) -> RetoucherConfig | None:
        if config.backbone == "tiny" and values.keys() & {"quantize", "offload_text_encoder", "vae_tiling", "resolution"}:
            return None
        if all(getattr(config, name) == value for name, value in values.items()):
            return None
        try:
            changed = replace(config, **values)
            check_sharding(changed, changed.plan_devices)
        except ConfigError:
            return None
        return changed

    return apply


def _at_most(name: str, value: int) -> Apply:
    def apply(config: RetoucherConfig) -> RetoucherConfig | None:
        now = _resolution(config) if name == "resolution" else getattr(config, name)
        return _to(**{name: value})(config) if now > value else None

    return apply


def _fsdp2_options(config: RetoucherConfig, devices: int) -> dict[str, Any]:
    """The options that divide a run's base among devices, with those that must then be larger."""
    photos = -(-config.photos_per_step // devices) * devices
    larger = {name: max(getattr(config, name), devices) for name in ("validation_photos", "held_out_photos")}
    return {"sharding": "fsdp2", "photos_per_step": photos, **larger}


def _fsdp2(devices: int) -> Apply:
    def apply(config: RetoucherConfig) -> RetoucherConfig | None:
        if config.device == "cpu" or (config.sharding == "fsdp2" and config.plan_devices >= devices):
            return None
        return _to(plan_devices=devices, **_fsdp2_options(config, devices))(config)

    return apply


def _fsdp2_words(config: RetoucherConfig, devices: int) -> str:
    """The options of `_fsdp2` as they are typed, with the launcher."""
    new = {name: value for name, value in _fsdp2_options(config, devices).items() if getattr(config, name) != value}
    options = [f"--{name.replace('_', '-')} {value}" for name, value in new.items()]
    return " ".join([*options, f"(started by torchrun --nproc_per_node {devices})"])


# ---- the plan


def plan_memory(config: RetoucherConfig) -> Memory:
    """What one device holds and needs.

    Pictures and latents count where the run is on the CPU; with a GPU they stay on the host. Offloaded text encoders stand beside the
    transformer while they encode. A judge on the same device stays there all the time. FSDP2 divides the transformer alone.

    Raises:
        ConfigError: no built-in backbone, or a judge's name is none.
        WeightsError: a folder holds no model, or another one.
    """
    gpu, offloaded, nf4 = config.device != "cpu", config.offload_text_encoder, config.quantize == "nf4"
    spec = _spec(config)
    adapted = (spec, config.rank, config.gradient_checkpointing)
    backbone, weights, trained = planned_backbone(spec), weight_bytes(spec), lora_sizes(*adapted)
    host = dict.fromkeys(("photos and latents", "candidates", "evaluated"), 0) if gpu else _host_bytes(config)
    judges = plan_judges(config, backbone.resolution)
    shards = Shards(config.sharding, config.plan_devices)
    base = weights["quantised transformer"] if nf4 else weights["transformer"]
    gathered = 2 * weights["largest block"] if shards.of_weights > 1 else 0
    held = {
        "weights of the transformer": base // shards.of_weights + gathered,
        "autoencoder": weights["autoencoder"],
        "text encoders": 0 if offloaded else weights["text encoders"],
        "LoRA": trained.size,
        "LoRA, moving average and best": 2 * trained.size,
        "gradients": trained.size,
        "optimiser states": trained.states(config.optimizer, Shards()),
        "photos and latents": host["photos and latents"],
        **judges.held,
    }

    rolled_out, updated, evaluated = _rollout_rows(config), _update_rows(config), _evaluation_rows(config)
    unpacked = weights["largest linear"] if nf4 else 0
    update = update_bytes(*adapted, updated, config.kl_beta > 0)
    if offloaded:
        text = {"encoding text, the encoders beside the transformer": text_bytes(spec) + weights["text encoders"]}
    else:
        text = {"encoding text": text_bytes(spec)}
    phases = {
        **text,
        "encoding photos": encode_bytes(spec, min(config.photos_per_step, backbone.batch)),
        f"rollout, {rolled_out} candidates at once": rollout_bytes(*adapted, rolled_out) + unpacked,
        "decoding": decode_bytes(spec, min(max(rolled_out, evaluated), backbone.batch)),
        **judges.phases,
        f"update, {updated} candidates at once": update + unpacked + host["candidates"],
        "optimiser step": trained.size if gpu else trained.largest,
        f"evaluation, {evaluated} photos at once": rollout_bytes(*adapted, evaluated) + unpacked + host["evaluated"],
    }
    notes = {"activations, checkpointing": "on" if config.gradient_checkpointing else "off", "attention": "fused (SDPA), no score matrix"}
    notes |= judges.notes
    if shards.devices > 1:
        notes["split"] = f"{shards.kind} over {shards.devices} devices (planned only)"
    return Memory(weights["parameters"], trained.values, held, phases, gpu, notes)


def _spec(config: RetoucherConfig) -> Spec:
    return Spec(config.backbone, config.model, config.resolution, config.guidance, config.vae_tiling)


def _resolution(config: RetoucherConfig) -> int:
    return planned_backbone(_spec(config)).resolution


def _drawn_steps(config: RetoucherConfig) -> int:
    return len(config.scheduler([1 - step / config.num_steps for step in range(config.num_steps + 1)], 0).drawn_steps)


def _update_rows(config: RetoucherConfig) -> int:
    """Candidates (or photos, where their first step is shared) of the largest forward with gradients."""
    photos = -(-config.photos_per_step // config.updates_per_step)
    shared = config.shared_noise and _drawn_steps(config) == 1
    return min(photos if shared else photos * config.group_size, config.micro_batch)


def _rollout_rows(config: RetoucherConfig) -> int:
    """Candidates of the photos that are rolled out together, or as many of them as a forward takes."""
    photos = min(config.photos_per_step, max(1, config.micro_batch // config.group_size))
    return min(config.micro_batch, photos * config.group_size)


def _evaluation_rows(config: RetoucherConfig) -> int:
    """Photos of the larger evaluation set that are retouched and decoded together."""
    return min(config.micro_batch, max(config.validation_photos, config.held_out_photos))


def _host_bytes(config: RetoucherConfig) -> dict[str, int]:
    """Bytes of pictures and latents, which stay on the CPU: at rest, in an update, and in an evaluation."""
    tokens, channels = latent_shape(_spec(config))
    latent, channel = 4 * tokens * channels, 4 * _resolution(config) ** 2
    evaluated = config.validation_photos + config.held_out_photos
    candidates = config.photos_per_step * config.group_size
    photos = (config.photos_per_step + evaluated) * (PHOTO_CHANNELS + 3) * channel  # with their residuals
    latents = candidates * (1 + 4 * _drawn_steps(config)) + 2 * evaluated  # of each candidate and of its drawn steps
    return {
        "photos and latents": photos + latents * latent,
        "candidates": candidates * 9 * channel,  # as decoded, joined, and cut into groups to be scored
        "evaluated": 3 * config.held_out_photos * 3 * channel,  # before and after training, and the parts beside them
    }


# ---- judges


@dataclass(frozen=True)
class JudgePlan:
    """Bytes that judges hold, bytes that they take while they judge, and what is to be said of them; by name."""

    held: dict[str, int] = field(default_factory=dict)
    phases: dict[str, int] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def plan_judges(config: RetoucherConfig, resolution: int) -> JudgePlan:
    """The judges that transformers runs in this process: none with `--reward-worker`, nor one behind an address.

    Raises:
        ConfigError: a judge's name is none.
        WeightsError: its `judge.json` is damaged.
    """
    plan = JudgePlan()
    for name in config.all_rewards:
        kind, _, argument = name.partition(":")
        if kind != "judge":
            continue
        source, _ = split_argument(argument)
        if config.reward_worker or source.startswith(("http://", "https://")):
            plan.notes[name] = "elsewhere, not counted"
        elif source.startswith("vllm:"):
            plan.notes[name] = "vLLM takes 9 tenths of a device: give it one of its own by --reward-worker; not counted"
        else:
            spec, sizes = _judge_model(source_of(source), gpu=config.device != "cpu")
            if spec.source == ASSUMED_JUDGE != source:
                plan.notes[name] = f"not known here, planned as {ASSUMED_JUDGE}"
            plan.held[f"{name}, weights"] = sizes.weights
            load = _judge_load(read_settings(Path(source_of(source))) or JudgeSettings(), sizes, resolution)
            judging = f"judging, {JUDGE_BATCH} questions at once"
            plan.phases[judging] = max(plan.phases.get(judging, 0), generation_bytes(spec, load))
    return plan


def _judge_model(source: str, *, gpu: bool) -> tuple[ModelSpec, ModelSizes]:
    """A judge's model, or the assumed one in its place."""
    for name in (source, ASSUMED_JUDGE):
        spec = ModelSpec(name, "bfloat16" if gpu else "float32", gpu=gpu)
        with suppress(WeightsError):
            if (sizes := model_sizes(spec)) is not None:
                return spec, sizes
    raise AssertionError(f"{ASSUMED_JUDGE}: its architecture is built in")


def _judge_load(settings: JudgeSettings, sizes: ModelSizes, resolution: int) -> Load:
    """What a judge reads and writes for one batch of questions."""
    side = sizes.token_side
    pictures, height, width = (2, *BESIDE_DIFFERENCE) if settings.shown == "beside-difference" else (3, resolution, resolution)
    return Load(JUDGE_BATCH, pictures, ceil(height / side) * ceil(width / side), JUDGE_WORDS[settings.form], settings.max_tokens)
