"""The stages of an `align-vlm` run: TRL's trainers one after the other, in one process or several, each from the weights of the last."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from policies.vlm.align.align_config import AlignVlmConfig
from policies.vlm.align.resume import Start, stage_model
from portraitkit.errors import DataError
from portraitkit.runs.folder import RunFolder
from portraitkit.runs.interrupt import Interruptible
from portraitkit.vlm.model import ASKED, attach_adapter, check_frozen, count_parameters, load_model, merge_adapter
from portraitkit.vlm.processes import release
from portraitkit.vlm.rows import Row
from portraitkit.vlm.shared_prefix import read_once
from portraitkit.vlm.task import Task
from portraitkit.vlm.trainer_arguments import grpo_arguments, lora_arguments, sft_arguments
from portraitkit.vlm.trainers import Follow, check_finite, make_grpo_trainer, make_sft_trainer


@dataclass(frozen=True)
class Setting:
    """What every stage needs.

    Attributes:
        config: of the run.
        run: its folder.
        task: that scores.
        processor: of the model.
        prompt: the user turn's text.
        rows: to train on.
        interrupt: asked after every update.
        console: for progress.
        validate: figures of a model for the log.
        write: whether this process writes files.
        together: waits until all processes are here.
    """

    config: AlignVlmConfig
    run: RunFolder
    task: Task
    processor: Any
    prompt: str
    rows: list[Row]
    interrupt: Interruptible
    console: Console
    validate: Callable[[Any], dict[str, float]]
    write: bool
    together: Callable[[], None]


def check_enough(config: AlignVlmConfig, rows: int, processes: int) -> None:
    """Refuse fewer rows than one update of GRPO takes: TRL would end at once, without an update and without a word.

    Raises:
        DataError: there are fewer.
    """
    wanted = config.prompts_per_step * processes
    if "grpo" in config.stages and not config.probe and rows < wanted:
        shared = f" x {processes} processes" if processes > 1 else ""
        raise DataError(
            f"{rows} training rows: an update takes {config.prompts_per_step} prompts{shared}, each row once; "
            "give more rows or lower --prompts-per-step"
        )


def load_policy(config: AlignVlmConfig) -> Any:
    """The model to align: with the LoRA of `--adapter` on it, or merged into it without --rank.

    Raises:
        WeightsError: the model cannot be loaded, or the adapter is damaged or of another model.
        ConfigError: the adapter would train the vision tower, which is to stay frozen.
    """
    model = _load(config, config.model)
    if config.adapter is not None:
        upcast = config.deepspeed is None
        model = attach_adapter(model, config.adapter, upcast=upcast) if config.rank else merge_adapter(model, config.adapter)
        if config.freeze_vision:
            check_frozen(model)
    return model


def train_stages(setting: Setting, model: Any, start: Start) -> Any:
    """Train the stages and leave the model in the run folder; `forget_stages` removes what the stages before the last have left.

    With DeepSpeed, whose processes may hold a share of each weight, it is gathered, written and read again, whole, in every process.

    Args:
        setting: of the run.
        model: to train; None to load it here, so that nobody else holds what DeepSpeed shares out.
        start: what is left to train.

    Returns:
        The trained model, or None where the run was interrupted.

    Raises:
        TrainingStopped: a weight is not finite; nothing was saved.
    """
    config, stages = setting.config, setting.config.stages
    done = stages.index(start.stage)
    lora = lora_arguments(config) if config.adapter is None else None
    if done:
        model = _read(config, stage_model(setting.run.path, stages[done - 1], stages))
    for stage in stages[done:]:
        model = load_policy(config) if model is None else model
        lora = None if stage != stages[0] else lora  # a later stage trains the same LoRA on: merged, its saved part would lack this one's
        trainer = _train(setting, stage, model, lora, start if stage == start.stage else Start(stage))
        if setting.interrupt.requested and trainer.state.global_step < trainer.args.max_steps:
            return None
        model, target = trainer.model, stage_model(setting.run.path, stage, stages)
        _save(setting, trainer, target)
        if setting.interrupt.requested:
            return None
        if config.deepspeed is not None or (stage != stages[-1] and _read_again(config)):
            del trainer, model
            release()
            model = _read(config, target)
    return model


def forget_stages(config: AlignVlmConfig) -> None:
    """Remove the models between the stages of a finished run."""
    for stage in config.stages[:-1]:
        shutil.rmtree(stage_model(Path(config.folder), stage, config.stages))


def _train(setting: Setting, stage: str, model: Any, lora: Any, start: Start) -> Any:
    """One stage; returns its trainer."""
    config, folder, task = setting.config, setting.run.path, setting.task
    frozen = config.freeze_vision
    setting.run.truncate_metrics(start.step, stage)
    steps = config.sft_steps if stage == "sft" else config.max_train_steps
    every = config.validation_steps if config.deepspeed is None else 0  # a model in shares cannot be asked as it is
    with progress(setting.console) as shown:
        bar = shown.add_task(stage, total=steps)
        follow = Follow(setting.run, stage, setting.interrupt, shown, bar, lambda: setting.validate(trainer.model), every)
        common = (model, setting.processor, setting.prompt, setting.rows)
        if stage == "sft":
            trainer = make_sft_trainer(*common, sft_arguments(config, f"{folder}/sft"), follow, lora, frozen=frozen)
        else:
            given = (*common, grpo_arguments(config, str(folder)), follow, task, config.mode, lora)
            trainer = make_grpo_trainer(*given, frozen=frozen, last_norm=config.last_norm)
        everything, trained = count_parameters(trainer.model)
        setting.console.print(f"{stage}: {trained:,} of {everything:,} weights are trained", highlight=False)
        if start.checkpoint is not None and start.step >= steps and config.deepspeed is None:
            trainer._load_from_checkpoint(start.checkpoint)  # stopped when all was done; transformers would train one update more
            trainer.state.global_step = start.step
            return trainer
        with read_once(trainer.model):
            trainer.train(resume_from_checkpoint=start.checkpoint)
    return trainer


def _read_again(config: AlignVlmConfig) -> bool:
    """Whether the next stage starts from files.

    With DeepSpeed; since TRL reads its reference model from where the policy came; or to train all weights when it is not GRPO's turn.
    """
    return config.deepspeed is not None or (not config.rank and (config.beta > 0 or config.last_norm))


def _save(setting: Setting, trainer: Any, target: Path) -> None:
    """The model, or its LoRA alone, with the processor; every process must be here, one of them writes."""
    config = setting.config
    state = None
    if config.deepspeed is not None:
        state = trainer.accelerator.get_state_dict(trainer.deepspeed)  # with ZeRO-3 whole in the first process, nothing in the others
    if setting.write:
        model = trainer.accelerator.unwrap_model(trainer.model)
        check_finite(model, state)
        setattr(model.config, ASKED, "full" if setting.prompt == setting.task.prompt else "brief")
        which = {"selected_adapters": ["default"]} if config.rank else {}  # TRL adds a reference
        part = target.with_name("model.part")  # a killed process leaves none or all of the model
        for old in (part, target):
            shutil.rmtree(old, ignore_errors=True)
        model.save_pretrained(part, **({"state_dict": state} if state is not None else {}), **which)
        setting.processor.save_pretrained(part)
        part.rename(target)
    setting.together()


def _read(config: AlignVlmConfig, saved: Path) -> Any:
    if config.rank:
        return attach_adapter(_load(config, config.model), str(saved), upcast=config.deepspeed is None)
    return _load(config, str(saved))


def _load(config: AlignVlmConfig, source: str) -> Any:
    return load_model(source, dtype=config.dtype, device=config.device, freeze_vision=config.freeze_vision)


def progress(console: Console) -> Progress:
    """Description, bar, how many of how many, time taken and time left."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), console=console
    )
