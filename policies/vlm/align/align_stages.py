"""The stages of an `align-vlm` run, one after the other, each from the weights of the last; and where a run that was stopped goes on."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.vlm.align.align_config import AlignVlmConfig
from portraitkit.errors import CheckpointError, DataError
from portraitkit.runs.checkpoint import find_checkpoint
from portraitkit.vlm.model import attach_adapter, check_frozen, load_model, merge_adapter
from portraitkit.vlm.rows import Row, imitable
from portraitkit.vlm.stages import Interrupted, RunContext, Stage, newest_checkpoint, release, store, train
from portraitkit.vlm.task import ASKED, Task
from portraitkit.vlm.trainer_arguments import lora_arguments
from portraitkit.vlm.trainers import RewardFunction


def check_enough(config: AlignVlmConfig, rows: int, processes: int) -> None:
    """DataError for fewer rows than one update of GRPO takes: TRL would end at once, without an update and without a word."""
    wanted = config.prompts_per_step * processes
    if "grpo" in config.stages and not config.probe and rows < wanted:
        shared = f" x {processes} processes" if processes > 1 else ""
        raise DataError(
            f"{rows} training rows: an update takes {config.prompts_per_step} prompts{shared}, each row once; "
            "give more rows or lower --prompts-per-step"
        )


def load_policy(config: AlignVlmConfig) -> Any:
    """The model to align: with the LoRA of `--adapter` on it, or merged into it without --rank."""
    model = _load(config, config.model)
    if config.adapter is not None:
        upcast = config.deepspeed is None
        model = attach_adapter(model, config.adapter, upcast=upcast) if config.rank else merge_adapter(model, config.adapter)
        if config.freeze_vision:
            check_frozen(model)
    return model


def train_stages(
    context: RunContext,
    config: AlignVlmConfig,
    task: Task,
    rows: Sequence[Row],
    model: Any,
    start: "Start",
    more: Sequence[RewardFunction] = (),
) -> Any:
    """Train the stages and leave the model in the run folder; `forget_stages` removes what the stages before the last have left.

    With DeepSpeed, whose processes may hold a share of each weight, it is gathered, written and read again, whole, in every process; the
    model is None then, to be loaded here, so that nobody else holds what DeepSpeed shares out.
    Interrupted: what is done is saved.
    TrainingStopped: a weight is not finite; nothing was saved."""
    stages, folder = config.stages, context.run.path
    done = stages.index(start.stage)
    lora = lora_arguments(config) if config.adapter is None else None
    if done:
        model = _read(config, stage_model(folder, stages[done - 1], stages))
    for name in stages[done:]:
        model = load_policy(config) if model is None else model
        lora = None if name != stages[0] else lora  # a later stage trains the same LoRA on: merged, its saved part would lack this one's
        if name == "sft":
            stage = Stage(name, folder / "sft", imitable(rows), config.sft_steps)
        else:
            stage = Stage(name, folder, rows, config.max_train_steps, task, config.mode, more=more)
        trainer = train(context, stage, model, lora, start.checkpoint if name == start.stage else None)
        model, target = trainer.model, stage_model(folder, name, stages)
        setattr(trainer.accelerator.unwrap_model(model).config, ASKED, "full" if context.prompt == task.prompt else "brief")
        store(context, trainer, target)
        if context.interrupt.requested:
            raise Interrupted
        # From files: with DeepSpeed; since TRL reads its reference model from where the policy came; to train all weights before GRPO
        again = not config.rank and (config.beta > 0 or config.last_norm)
        if config.deepspeed is not None or (name != stages[-1] and again):
            del trainer, model
            release()
            model = _read(config, target)
    return model


def forget_stages(config: AlignVlmConfig) -> None:
    """Remove the models between the stages of a finished run."""
    for stage in config.stages[:-1]:
        shutil.rmtree(stage_model(Path(config.folder), stage, config.stages))


def _read(config: AlignVlmConfig, saved: Path) -> Any:
    if config.rank:
        return attach_adapter(_load(config, config.model), str(saved), upcast=config.deepspeed is None)
    return _load(config, str(saved))


def _load(config: AlignVlmConfig, source: str) -> Any:
    return load_model(source, dtype=config.dtype, device=config.device, freeze_vision=config.freeze_vision)


@dataclass(frozen=True)
class Start:
    """What is left to train."""

    stage: str  # the first one; those before it are done and their models stored
    checkpoint: Path | None = None  # of that stage, or None to begin it


def stage_model(run: Path, stage: str, stages: Sequence[str]) -> Path:
    """Where a stage leaves its model: the last one's is the run's."""
    return run / "model" if stage == stages[-1] else run / stage / "model"


def find_start(run: Path, stages: Sequence[str], which: str | None) -> Start:
    """The stage and checkpoint to go on from, `which` being as --resume-from-checkpoint has it: None, latest, or a checkpoint's folder.
    Checkpoints of GRPO stand in the run's folder, those of another stage in the stage's.
    CheckpointError: there is none, it is incomplete, or is not of one of the stages."""
    if which is None:
        return Start(stages[0])
    folders = {stage: run if stage == "grpo" else run / stage for stage in stages}
    if which != "latest":
        return _given(run, folders, find_checkpoint(run, which))
    for place, stage in reversed(list(enumerate(stages))):
        before = stage_model(run, stages[place - 1], stages) if place else None
        if before is not None and not before.is_dir():
            continue
        if (checkpoint := newest_checkpoint(folders[stage])) is not None or before is not None:
            return Start(stage, checkpoint)
    raise CheckpointError(f"{run}: holds no complete checkpoint; leave --resume-from-checkpoint out and use --overwrite")


def _given(run: Path, folders: dict[str, Path], checkpoint: Path) -> Start:
    """A checkpoint that the user names belongs to the stage in whose folder it stands; another run's are GRPO's."""
    stages, stage = list(folders), "sft" if checkpoint.resolve().parent.name == "sft" else "grpo"
    if stage not in stages:
        raise CheckpointError(f"--resume-from-checkpoint {checkpoint}: is of the stage {stage}; this run has --stages {' '.join(stages)}")
    place = stages.index(stage)
    if place and not (before := stage_model(run, stages[place - 1], stages)).is_dir():
        raise CheckpointError(f"--resume-from-checkpoint {checkpoint}: {before}, which it started from, is gone; use --overwrite")
    if any(next(folders[name].glob("checkpoint-*"), None) for name in stages[place + 1 :]):
        done = "a later stage has checkpoints already"
        raise CheckpointError(f"--resume-from-checkpoint {checkpoint}: {done}; give latest, or use --overwrite")
    return Start(stage, checkpoint)
