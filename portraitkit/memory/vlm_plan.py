"""The plan of a training run for `--dry-run`: devices, memory, steps, tokens, without weights and without training."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import torch

from portraitkit.memory.plan import Change, Memory, Shards, check_fits, device_limit, print_table, set_to
from portraitkit.memory.vlm_trace import Load, ModelSpec, generation_bytes, model_sizes, read_bytes, update_bytes
from portraitkit.vlm.model import be_quiet
from portraitkit.vlm.trainer_arguments import batch_of, deepspeed_file, grpo_values, lora_arguments, parse_extra, sft_values, taken
from portraitkit.vlm.trainer_options import TrainerOptions

PICTURE_PIXELS, WORDS = 1280 * 784, 300  # Of a picture without --max-pixels, and tokens of the prompt's text (assumed)
EMBEDDED_TOKENS, EMBEDDED_WORDS = 64, 40  # Of a picture and of the brief prompt of the embedded model


@dataclass(frozen=True)
class Planner:
    """Plans runs of one command; settings that differ in what is trained share its sizes."""

    model: str  # embedded, a folder or a hub id
    stages: Sequence[str]  # of the run
    pictures: int = 1  # shown in a row
    picture_tokens: int | None = None  # of one picture; None: 64 with the embedded model, else by pixels
    words: int | None = None  # tokens of the prompt's text; None: assumed
    rows: int | None = None  # to train on; None: unknown before the data are read
    lora: bool = True  # whether a LoRA may be proposed where all weights are trained

    def spec(self, options: TrainerOptions) -> ModelSpec:
        """How the model is trained."""
        lora = (options.rank, options.lora_alpha, options.lora_dropout, tuple(options.lora_targets)) if options.rank else None
        last_norm = options.last_norm and set(self.stages) == {"grpo"}
        return ModelSpec(
            self.model,
            options.dtype,
            lora,
            freeze_vision=options.freeze_vision,
            checkpointing=options.gradient_checkpointing and not last_norm,
            last_norm=last_norm,
            gpu=options.device != "cpu",
        )

    def load(self, options: TrainerOptions, rows: int) -> Load:
        """What a pass of so many rows is given."""
        embedded = self.model == "embedded"
        if self.picture_tokens is not None:
            tokens = self.picture_tokens
        elif embedded:
            tokens = EMBEDDED_TOKENS
        else:
            sizes = model_sizes(self.spec(options))
            largest = options.max_pixels or min(_largest_picture(self.model) or PICTURE_PIXELS, PICTURE_PIXELS)
            tokens = max(1, largest // (sizes.token_side**2 if sizes else 28 * 28))
        words = self.words if self.words is not None else EMBEDDED_WORDS if embedded else WORDS
        return Load(rows, self.pictures, tokens, words, options.max_tokens)

    def batch(self, options: TrainerOptions) -> list[tuple[str, str]]:
        """(stage, what all devices take together in an update and in all)."""
        return [(stage, taken(stage, options, options.plan_devices, self.rows)) for stage in self.stages if stage != "reject"]

    def memory(self, options: TrainerOptions) -> Memory | None:
        """What one device holds and needs; None where the model's architecture is not known."""
        from trl import GRPOConfig

        spec = self.spec(options)
        if (sizes := model_sizes(spec)) is None:
            return None
        shards, path = Shards(options.plan_sharding, options.plan_devices), deepspeed_file(options.deepspeed)
        if path is not None:  # --plan-sharding counts where DeepSpeed does not split the run
            stage = json.loads(Path(path).read_text(encoding="utf-8")).get("zero_optimization", {}).get("stage", 0)
            shards = Shards("zero2" if stage == 2 else "zero3" if stage == 3 else "none", options.plan_devices)
        trained, batch = sizes.trained, batch_of(options)
        answers, at_once = batch.answers, batch.at_once
        generated, updated, imitated = (self.load(options, rows) for rows in (answers, at_once, options.sft_batch))
        extra = parse_extra(options.trl, GRPOConfig)
        vllm = extra.get("vllm_mode", "server") if extra.get("use_vllm") else None
        share = float(extra.get("vllm_gpu_memory_utilization", 0.3)) if vllm == "colocate" else 0.0
        limit = device_limit(options.device_memory, options.device)
        gathered = 2 * sizes.largest_block if shards.of_weights > 1 else 0
        reference = sizes.weights if options.beta > 0 and options.rank == 0 and "grpo" in self.stages else 0
        held = {
            "weights": sizes.weights // shards.of_weights + gathered,
            "LoRA": sizes.adapter // shards.of_weights,
            "reference copy": reference // shards.of_weights,
            "optimiser states": trained.states("adamw", shards),
            "vLLM, colocated": int(share * (limit or 0)),
        }
        elsewhere = trained.size - trained.size // shards.of_state  # gradients that other devices keep
        whole = sizes.weights - sizes.weights // shards.of_weights  # answers are generated with all weights on each device
        phases: dict[str, int] = {}

        if {"sft", "reject"} & set(self.stages):
            phases[f"sft, {options.sft_batch} rows at once"] = update_bytes(spec, imitated, accumulated=False) - elsewhere
        if {"grpo", "reject"} & set(self.stages) and vllm is None:
            phases[f"generation, {answers} answers at once"] = whole + generation_bytes(spec, generated)
        if "grpo" in self.stages:
            pixels = 4 * sizes.values_per_token * generated.picture_tokens * generated.pictures * generated.rows
            held["pictures of a step"] = pixels
            if reference:
                phases["reference's log-probabilities"] = read_bytes(replace(spec, lora=None), updated, scored=True)
            phases[f"grpo update, {at_once} sequences at once"] = update_bytes(spec, updated, accumulated=batch.parts > 1) - elsewhere
        phases["evaluation, generation"] = whole + generation_bytes(spec, self.load(options, options.generation_batch))
        step = trained.size // shards.of_state
        phases["optimiser step"] = step + (step if spec.gpu else trained.largest)
        notes = {
            "gradients": f"{trained.size / shards.of_state / 2**20:.1f} MiB, within sft, update and optimiser step",
            "activations, checkpointing": "on" if spec.checkpointing else "off",
            "attention": "fused (SDPA), no score matrix; head fused (TRL), no matrix of logits",
        }
        if shards.devices > 1 or shards.kind != "none":
            notes["split"] = f"{shards.kind} over {shards.devices} devices"
        return Memory(sizes.parameters, trained.values, held, phases, spec.gpu, notes)


def _largest_picture(model: str) -> int | None:
    """Pixels that a folder's processor scales pictures down to; None where it does not say."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (path := Path(model) / name).is_file():
            stored = json.loads(path.read_text(encoding="utf-8"))
            return stored.get("image_processor", stored).get("size", {}).get("longest_edge")
    return None


def plan(options: TrainerOptions, planner: Planner) -> list[tuple[str, str]]:
    """(name, value) lines of the plan."""
    be_quiet()
    load = planner.load(options, batch_of(options).at_once)
    lines = [
        ("stages", ", ".join(planner.stages)),
        ("device", f"{options.device}, {torch.cuda.device_count()} CUDA device(s) here"),
        *planner.batch(options),
        ("tokens", f"about {load.length} a sequence at most: pictures {load.pictures * load.picture_tokens}, answer {load.answer}"),
    ]
    memory = planner.memory(options)
    if memory is None:
        return [*lines, ("model", f"{planner.model}: unknown here; download its config.json for a memory estimate")]
    return [*lines, *memory.lines()]


def refuse_if_too_large(options: TrainerOptions, planner: Planner) -> None:
    """Refuse a run that cannot fit; ConfigError: with the change that makes it fit."""
    if (memory := planner.memory(options)) is not None:
        limit = device_limit(options.device_memory, options.device)
        check_fits(options, memory, limit, lambda changed: planner.memory(changed) or memory, changes(lora=planner.lora), (zero3,))


def changes(*, lora: bool = True) -> list[Change[TrainerOptions]]:
    """What may be changed to make a run fit, the least painful first; a LoRA in place of all weights only with `lora`."""
    return [
        lambda options: None if options.last_norm else set_to(options, gradient_checkpointing=True),
        lambda options: set_to(options, accumulation_steps=options.prompts_per_step * options.group_size),  # an answer at a time
        _at_most("sft_batch", 1),
        _at_most("generation_batch", 8),
        *([lambda options: None if options.rank or options.last_norm else set_to(options, rank=64, lora_alpha=128)] if lora else []),
        _at_most("max_pixels", 401408),
        _fewer("group_size", 4),
        _fewer("prompts_per_step", 1),
    ]


def _at_most(name: str, value: int) -> Change[TrainerOptions]:
    def change(options: TrainerOptions) -> TrainerOptions | None:
        now = getattr(options, name)
        return set_to(options, **{name: value}) if now is None or now > value else None

    return change


def _fewer(name: str, value: int) -> Change[TrainerOptions]:
    """Fewer answers in an update, in parts that are no larger than they were."""

    def change(options: TrainerOptions) -> TrainerOptions | None:
        if getattr(options, name) <= value:
            return None
        before = options.prompts_per_step * options.group_size
        answers = before // getattr(options, name) * value
        least = ceil(answers * options.accumulation_steps / before)
        parts = next(parts for parts in range(least, answers + 1) if answers % parts == 0)
        return set_to(options, **{name: value}, accumulation_steps=parts)

    return change


def zero3(options: TrainerOptions) -> TrainerOptions | None:  # the base and its gradients on 8 devices
    split = options.deepspeed == "zero3" and options.plan_devices >= 8
    return None if split or options.device == "cpu" else set_to(options, deepspeed="zero3", plan_devices=8)


def print_plan(
    title: str, lines: Sequence[tuple[str, str]], options: TrainerOptions, planner: Planner, *, sft_folder: str, grpo_folder: str
) -> None:
    """Print the exact arguments that TRL and peft would get, as JSON, and below them the plan; checkpoints go to the folders."""
    from rich.console import Console

    arguments = {}
    if {"sft", "reject"} & set(planner.stages):
        arguments["trl.SFTConfig"] = sft_values(options, sft_folder)
    if "grpo" in planner.stages:
        arguments["trl.GRPOConfig"] = grpo_values(options, grpo_folder)
    if (lora := lora_arguments(options)) is not None:
        arguments["peft.LoraConfig"] = {"r": lora.r, "lora_alpha": lora.lora_alpha, "target_modules": sorted(lora.target_modules)}
    console = Console()
    for name, values in arguments.items():
        console.print(name, highlight=False)
        console.print_json(json.dumps(values, default=str))
    print_table(title, lines)
