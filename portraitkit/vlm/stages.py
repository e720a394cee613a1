"""Stages of a run: each one training by TRL, with checkpoints, interrupt and resume, in one process or several, and the model it leaves."""

import gc
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from portraitkit.errors import TrainingStopped
from portraitkit.processor import keep_freed_memory
from portraitkit.runs.checkpoint import complete_checkpoints, drop_checkpoints, step_of
from portraitkit.runs.folder import RunFolder
from portraitkit.runs.terminal import Interruptible, progress_bar
from portraitkit.vlm.model import be_quiet, check_device, count_parameters, load_model
from portraitkit.vlm.rows import Row
from portraitkit.vlm.shared_prefix import read_once
from portraitkit.vlm.task import Mode, Task
from portraitkit.vlm.trainer_arguments import grpo_arguments, sft_arguments, start_processes
from portraitkit.vlm.trainer_options import TrainerOptions
from portraitkit.vlm.trainers import Follow, RewardFunction, make_grpo_trainer, make_sft_trainer


class Interrupted(Exception):
    """Ctrl-C or SIGTERM came and what can be saved is saved; the command ends with the interrupt's exit code."""


@dataclass(frozen=True)
class RunContext:
    """What all stages of a run share."""

    options: TrainerOptions  # of the trainers
    run: RunFolder  # the run's folder
    processor: Any  # of the model
    prompt: str  # the user turn's text
    interrupt: Interruptible  # asked after every update
    console: Console  # for progress
    processes: Any  # an `accelerate.PartialState`; the main process writes
    validate: Callable[[Any], dict[str, float]] | None = None  # from a model to figures for the log, or None


@dataclass(frozen=True)
class Stage:
    """One training."""

    name: str  # in the log
    folder: Path  # takes the checkpoints
    rows: Sequence[Row]  # to imitate, or with a task to be rewarded on
    steps: int  # updates; of GRPO the options have the number
    task: Task | None = None  # None: supervised
    mode: Mode = "fixed"  # of the task's rewards
    validated: bool = True  # log validation figures as the options say
    more: Sequence[RewardFunction] = ()  # rewards beside the task's


def start_run(options: TrainerOptions, folder: str) -> tuple[Any, Console, Any]:
    """The processes of a run, the main one's screen and GRPO's arguments; what TRL refuses is refused before anything is loaded."""
    be_quiet()
    check_device(options.device)
    processes = start_processes(options)
    sft_arguments(options, folder)
    grpo = grpo_arguments(options, folder)
    release()
    if options.device == "cpu":
        keep_freed_memory()
    return processes, Console(stderr=True, quiet=not processes.is_main_process), grpo


def train(context: RunContext, stage: Stage, model: Any, lora: Any, checkpoint: Path | None) -> Any:
    """Train a stage from its beginning or from a checkpoint; returns TRL's trainer with the trained model.

    Raises:
        Interrupted: before the last update; a checkpoint is saved.
    """
    options = context.options
    context.run.truncate_metrics(-1 if checkpoint is None else step_of(checkpoint), stage.name)
    if context.processes.is_main_process and checkpoint in (None, newest_checkpoint(stage.folder)):
        drop_checkpoints(stage.folder, options.checkpoints_total_limit)
    asked = stage.validated and context.validate is not None and options.deepspeed is None  # a model in shares cannot be asked as it is

    def validate() -> dict[str, float]:
        assert context.validate is not None
        return context.validate(trainer.model)

    with progress_bar(context.console, elapsed=True) as progress:
        bar = progress.add_task(stage.name, total=stage.steps)
        every = options.validation_steps if asked else 0
        follow = Follow(context.run, stage.name, context.interrupt, progress, bar, validate, every)
        data = (model, context.processor, context.prompt, stage.rows)
        frozen = options.freeze_vision
        if stage.task is None:
            arguments = sft_arguments(options, str(stage.folder))
            arguments.max_steps = stage.steps
            trainer = make_sft_trainer(*data, arguments, follow, lora, frozen=frozen)
        else:
            arguments = grpo_arguments(options, str(stage.folder))
            how: dict[str, Any] = {"frozen": frozen, "last_norm": options.last_norm, "more": stage.more}
            trainer = make_grpo_trainer(*data, arguments, follow, stage.task, stage.mode, lora, **how)
        everything, trained = count_parameters(trainer.model)
        context.console.print(f"{stage.name}: {trained:,} of {everything:,} weights are trained", highlight=False)
        if checkpoint is not None and step_of(checkpoint) >= arguments.max_steps and options.deepspeed is None:
            trainer._load_from_checkpoint(str(checkpoint))  # stopped when all was done; transformers would train one update more
            trainer.state.global_step = step_of(checkpoint)
            return trainer
        with read_once(trainer.model):
            trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if context.interrupt.requested and trainer.state.global_step < arguments.max_steps:
        raise Interrupted
    return trainer


def store(context: RunContext, trainer: Any, target: Path, *, base: str | None = None) -> None:
    """Write a trained model with its processor, in one piece: a killed process leaves none or all of it. Every process must be here.

    Of a LoRA the adapter alone is written; with `base`, a model as `--model` takes it, the LoRA is merged into that, and the adapter is
    kept in `adapter` beside the target. TrainingStopped: a weight is not finite; nothing is written.
    """
    options, state = context.options, None
    if options.deepspeed is not None:
        state = trainer.accelerator.get_state_dict(trainer.deepspeed)  # with ZeRO-3 whole in the first process, nothing in the others
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = model.named_parameters() if state is None else state.items()  # a model in shares holds a part of its own only
    if bad := next((name for name, value in weights if not bool(value.isfinite().all())), None):
        raise TrainingStopped(f"{bad}: is not finite after training; nothing was saved, lower --learning-rate or raise --beta")
    if context.processes.is_main_process:
        unfinished, adapter = target.with_name("model.part"), target.with_name("adapter")
        shutil.rmtree(unfinished, ignore_errors=True)
        which = {"selected_adapters": ["default"]} if options.rank else {}  # TRL adds a reference
        model.save_pretrained(unfinished, **({"state_dict": state} if state is not None else {}), **which)
        context.processor.save_pretrained(unfinished)
        if options.rank and base is not None:
            from peft import PeftModel

            shutil.rmtree(adapter, ignore_errors=True)
            unfinished.rename(adapter)
            release()
            merged: Any = PeftModel.from_pretrained(load_model(base, dtype=options.dtype), str(adapter)).merge_and_unload()
            merged.save_pretrained(unfinished)
            context.processor.save_pretrained(unfinished)
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
    context.processes.wait_for_everyone()


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None."""
    return next(reversed(complete_checkpoints(folder)), None)


def release() -> None:
    """Let go of what DeepSpeed's configuration and a trainer hold, before a model is loaded whole or the next trainer is made."""
    from accelerate.state import AcceleratorState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    AcceleratorState._reset_state()  # or a second trainer could not have its own DeepSpeed configuration
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
