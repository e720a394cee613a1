"""Qwen2.5-VL-7B at its real size with random weights: a few updates of GRPO by TRL, through `portraitkit.vlm.trainers`."""

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from policies.vlm.align.align_config import AlignVlmConfig
from portraitkit.config import load_config
from portraitkit.errors import ConfigError
from portraitkit.memory.plan import Memory, check_fits, device_limit, human
from portraitkit.memory.trace import tensors_of
from portraitkit.memory.vlm_plan import Planner, changes, zero3
from portraitkit.runs.terminal import Interruptible
from portraitkit.vlm.context import picture_tokens
from portraitkit.vlm.model import DTYPES, PUBLISHED, be_quiet, configuration_of, load_processor
from portraitkit.vlm.rows import Row
from portraitkit.vlm.task import Score, Task
from portraitkit.vlm.trainer_arguments import grpo_arguments, lora_arguments, start_processes
from portraitkit.vlm.trainers import make_grpo_trainer
from tools.bench.gpu.case import Case
from tools.bench.gpu.case import Row as Measured
from tools.bench.gpu.config import VLM_RECIPE, GpuBenchConfig
from tools.bench.gpu.device import measured_memory
from tools.bench.gpu.flops import vlm_flops
from tools.bench.group_cost import clock
from tools.embedded.tiny_vlm import SPECIAL, build_processor

REAL = "Qwen/Qwen2.5-VL-7B-Instruct"
METHOD = "GRPO by TRL"
PROMPT = "Look at the face in the picture and name the colours of lips, blush and eyeshadow, one after the other. "


def vlm_cases(bench: GpuBenchConfig, interrupt: Interruptible) -> list[Case]:
    """The one case."""
    model = "tiny Qwen2.5-VL" if bench.tiny else "Qwen2.5-VL-7B"
    answers = f"{bench.vlm_prompts} x {bench.vlm_group} answers of {bench.vlm_tokens} tokens"
    setting = f"picture {bench.vlm_picture} px, {answers}, LoRA {vlm_options(bench, ()).rank}"
    row = partial(Measured, model, setting, METHOD, unit="tokens")
    return [Case(model, setting, (METHOD,), lambda: _measure(bench, row, interrupt), lambda: _advice(bench))]


def vlm_options(bench: GpuBenchConfig, never: tuple[int, ...]) -> AlignVlmConfig:
    """The recipe with the benchmark's sizes.

    Args:
        bench: the sizes.
        never: tokens that no answer holds.
    """
    recipe = load_config(AlignVlmConfig, ["--config", VLM_RECIPE], prog="align-vlm")
    return replace(
        recipe,
        adapter=None,
        model=_source(bench),
        device=bench.where,
        dtype=recipe.dtype if bench.where == "cuda" else "float32",
        seed=bench.seed,
        max_train_steps=bench.vlm_updates,
        prompts_per_step=bench.vlm_prompts,
        group_size=bench.vlm_group,
        accumulation_steps=1,
        max_tokens=bench.vlm_tokens,
        generation_batch=bench.vlm_prompts * bench.vlm_group,
        checkpointing_steps=0,
        trl=(f"generation_kwargs={json.dumps({'suppress_tokens': never})}",),
    )


class Clock(TrainerCallback):
    """Seconds of each update: generation, rewards, forward, backward and the optimiser's step.

    Args:
        device: waited for.
        interrupt: asked after every update.
    """

    def __init__(self, device: str, interrupt: Interruptible) -> None:
        self.device, self.interrupt = device, interrupt
        self.seconds: list[float] = []

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start."""
        self._start = clock(self.device)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop."""
        self.seconds.append(clock(self.device) - self._start)
        control.should_training_stop = control.should_training_stop or self.interrupt.requested is not None


def _source(bench: GpuBenchConfig) -> str:
    return "embedded" if bench.tiny else REAL


def _processor(bench: GpuBenchConfig) -> Any:
    """Of the real model no tokenizer is at hand: one with few words, and pictures cut into patches as the model takes them."""
    if bench.tiny:
        return load_processor("embedded")
    sizes = {"shortest_edge": 56 * 56, "longest_edge": bench.vlm_picture**2}
    vision = PUBLISHED[REAL]["vision_config"]
    patches: dict[str, Any] = {name: vision[name] for name in ("patch_size", "temporal_patch_size")}
    return build_processor([PROMPT], size=sizes, merge_size=vision["spatial_merge_size"], **patches)


def _rows(bench: GpuBenchConfig) -> list[Row]:
    pictures = torch.rand(bench.vlm_prompts * bench.vlm_updates, 3, bench.vlm_picture, bench.vlm_picture)
    return [Row((picture,), None, "", {}) for picture in pictures]


def _by_chance(completion: str, truth: Any, mode: Any) -> Score:
    value = zlib.crc32(completion.encode()) / 2**32
    return Score(value, {"chance": value}, None)


def _task() -> Task:
    """Answers of random weights are noise, and so is what they earn: a number in [0, 1) that follows from the answer."""

    def no_truth(columns: Mapping[str, Any]) -> None:
        return None

    return Task("chance", 3 * PROMPT, no_truth, _by_chance, {"paper": (0.0, 1.0), "fixed": (0.0, 1.0)}, lambda truth: "")


def _planner(bench: GpuBenchConfig, processor: Any) -> Planner:
    tokens = picture_tokens(processor, [(bench.vlm_picture, bench.vlm_picture)])
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _task().prompt}]}]
    text = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    words = len(processor.tokenizer(text)["input_ids"]) - 1  # the place of the picture
    return Planner(_source(bench), ("grpo",), picture_tokens=tokens, words=words)


def _planned(planner: Planner, options: Any) -> Memory:
    """The plan without the evaluation, which has no part in this."""
    memory = planner.memory(options)
    assert memory is not None
    return replace(memory, phases={name: size for name, size in memory.phases.items() if not name.startswith("evaluation")})


def _advice(bench: GpuBenchConfig) -> str:
    options, planner = vlm_options(bench, ()), _planner(bench, _processor(bench))
    memory = _planned(planner, options)
    try:
        check_fits(options, memory, device_limit(None, bench.where), partial(_planned, planner), changes(), (zero3,))
    except ConfigError as error:
        return str(error).removeprefix("--device-memory: ")
    return f"the planner expected {human(memory.peak)} to be enough; free the device of other programs, or lower --vlm-group"


def _random_model(source: str, processor: Any, *, dtype: str, device: str) -> Any:
    """A model that is known here, with random weights, made on the device; in evaluation mode."""
    config = configuration_of(source)
    token = processor.tokenizer.convert_tokens_to_ids
    config.image_token_id, config.video_token_id = token("<|image_pad|>"), token("<|video_pad|>")
    config.vision_start_token_id, config.vision_end_token_id = token("<|vision_start|>"), token("<|vision_end|>")
    with torch.device(device):
        return AutoModelForImageTextToText.from_config(config, dtype=DTYPES[dtype]).eval()


def _measure(bench: GpuBenchConfig, row: Any, interrupt: Interruptible) -> Iterator[Measured]:
    be_quiet()
    processor, task = _processor(bench), _task()
    options = vlm_options(bench, tuple(processor.tokenizer.convert_tokens_to_ids(list(SPECIAL))))
    planner, answers = _planner(bench, processor), options.prompts_per_step * options.group_size
    load = planner.load(options, answers)
    flops = vlm_flops(options.model, options, replace(load, rows=1))
    start_processes(options)
    torch.manual_seed(bench.seed)
    model = _random_model(options.model, processor, dtype=options.dtype, device=bench.where)
    watch = Clock(bench.where, interrupt)
    with TemporaryDirectory() as folder:
        arguments = grpo_arguments(options, folder)
        arguments.save_strategy = "no"
        given = (model, processor, task.prompt, _rows(bench), arguments, watch, task, "fixed", lora_arguments(options))
        trainer = make_grpo_trainer(*given, frozen=options.freeze_vision, last_norm=options.last_norm)
        with measured_memory(bench.where, tensors_of(trainer.model)) as peak:
            trainer.train()
    if len(watch.seconds) < 2:
        return  # interrupted
    plan = _planned(planner, options)
    yield row(
        seconds=median(watch.seconds[1:]),
        evaluations=answers * (load.length - 1 + 3 * load.length),
        flops=answers * (flops.forward + flops.update),
        peak=peak.tensors,
        planned=plan.tensors,
        details={
            "updates": watch.seconds,
            "lora_modules": sum(name.endswith("lora_A.default") for name, _ in trainer.model.named_modules()),
            "tokens_of_a_picture": load.picture_tokens,
            "tokens_of_a_sequence": load.length,
            "answers_per_second": answers / median(watch.seconds[1:]),
            "peak_reserved": peak.reserved,
            "planned_peak": plan.peak,
            "planned_at": plan.at_peak,
        },
    )
