"""One training by TRL, from a stored model to a stored model: checkpoints, interrupt, resume, several processes, LoRA merged at its end."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from portraitkit.errors import CheckpointError
from portraitkit.runs.folder import RunFolder
from portraitkit.runs.interrupt import Interruptible
from portraitkit.runs.progress import progress_bar
from portraitkit.vlm.model import load_model
from portraitkit.vlm.processes import release
from portraitkit.vlm.rows import Row
from portraitkit.vlm.shared_prefix import read_once
from portraitkit.vlm.task import Task
from portraitkit.vlm.trainer_arguments import grpo_arguments, lora_arguments, sft_arguments
from portraitkit.vlm.trainers import Follow, check_finite, find_checkpoint, make_grpo_trainer, make_sft_trainer
from reward_models.judge.pairs import View
from reward_models.training.config import RewardModelConfig


class Interrupted(Exception):
    """Ctrl-C or SIGTERM came and what can be saved is saved; the command ends with its exit code."""


@dataclass(frozen=True)
class Fit:
    """What every training needs.

    Attributes:
        config: of the run.
        run: its folder; checkpoints go to a folder for each stage.
        processor: of the model.
        view: of the pairs.
        interrupt: asked after every update.
        console: for progress.
        validate: figures of a model for the log, or None.
        write: whether this process writes files.
        processes: of a distributed run.
        together: waits until all processes are here.
    """

    config: RewardModelConfig
    run: RunFolder
    processor: Any
    view: View
    interrupt: Interruptible
    console: Console
    validate: Callable[[Any], dict[str, float]] | None
    write: bool
    processes: int
    together: Callable[[], None]


def fit(setting: Fit, stage: str, start: str, rows: Sequence[Row], *, steps: int, task: Task | None = None) -> None:
    """Train and save to `stage/model`; goes on from the stage's newest complete checkpoint if there is one.

    Args:
        setting: see `Fit`.
        stage: names folder and log.
        start: model to load, as `--model` takes it.
        rows: to imitate, or with a task to be rewarded on.
        steps: updates.
        task: None: supervised.

    Raises:
        Interrupted: a checkpoint is saved.
        TrainingStopped: a weight is not finite.
    """
    config, folder = setting.config, setting.run.path / stage
    checkpoint = newest_checkpoint(folder)
    torch.manual_seed(config.seed)
    model = load_model(start, dtype=config.dtype, device=config.device, freeze_vision=config.freeze_vision)
    lora, frozen = lora_arguments(config), config.freeze_vision
    setting.run.truncate_metrics(int(Path(checkpoint).name.rpartition("-")[2]) if checkpoint else -1, stage)
    with progress_bar(setting.console, elapsed=True) as progress:
        bar = progress.add_task(stage, total=steps)
        validate = setting.validate if config.deepspeed is None else None  # a sharded model cannot be asked on its own

        def look() -> dict[str, float]:
            assert validate is not None
            return validate(trainer.model)

        every = config.validation_steps if validate is not None and stage != "blind" else 0
        follow = Follow(setting.run, stage, setting.interrupt, progress, bar, look, every)
        if task is None:
            arguments = sft_arguments(config, str(folder))
            arguments.max_steps = steps
            trainer = make_sft_trainer(model, setting.processor, setting.view.prompt, rows, arguments, follow, lora, frozen=frozen)
        else:
            arguments = grpo_arguments(config, str(folder))
            given = (model, setting.processor, setting.view.prompt, rows, arguments, follow, task, "fixed", lora)
            trainer = make_grpo_trainer(*given, frozen=frozen, last_norm=config.last_norm)
        with read_once(trainer.model):
            trainer.train(resume_from_checkpoint=checkpoint)
    if setting.interrupt.requested and trainer.state.global_step < steps:
        raise Interrupted
    check_finite(trainer.model)
    _save(setting, trainer, start, folder, lora is not None)
    del trainer, model
    release()
    for path in folder.glob("checkpoint-*"):
        if setting.write:
            shutil.rmtree(path)


def newest_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end, or None."""
    try:
        return find_checkpoint(folder, "latest")
    except CheckpointError:
        return None


def _save(setting: Fit, trainer: Any, start: str, folder: Path, lora: bool) -> None:
    """The whole model to `model`, in one piece: a killed process leaves none or all of it."""
    part, done = folder / "model.part", folder / "model"
    if setting.write and part.exists():
        shutil.rmtree(part)
    setting.together()
    trainer.save_model(str(part))  # gathers what ZeRO-3 has scattered: every process must be here
    setting.together()
    if not setting.write:
        return
    (part / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
    if lora:
        from peft import PeftModel

        adapter = part.rename(folder / "adapter")
        release()
        base = load_model(start, dtype=setting.config.dtype)
        PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().save_pretrained(part)
    setting.processor.save_pretrained(part)
    if done.exists():
        shutil.rmtree(done)
    part.rename(done)
