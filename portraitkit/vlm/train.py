"""The two training loops of vision-language models, both TRL's: supervised (SFTTrainer) and by reward (GRPOTrainer)."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, Image, List
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from portraitkit.errors import CheckpointError, TrainingStopped
from portraitkit.pictures.images import read_image, to_pil
from portraitkit.vlm.callbacks import StayFrozen
from portraitkit.vlm.load import check_frozen, train_last_norm
from portraitkit.vlm.pictures import Limit, capped, limit_of, shown
from portraitkit.vlm.rewards import reward_functions
from portraitkit.vlm.rows import Row
from portraitkit.vlm.task import Mode, Task


def make_sft_trainer(
    model: Any,
    processor: Any,
    prompt: str | Sequence[str],
    rows: Sequence[Row],
    arguments: Any,
    callback: TrainerCallback,
    lora: Any = None,
    *,
    frozen: bool = False,
) -> Any:
    """TRL's SFTTrainer on the rows' targets; only the answers bear a loss.

    Args:
        model: and `processor`, from `portraitkit.vlm.load`.
        processor: of the model.
        prompt: the user turn's text, or one for each row.
        rows: to imitate.
        arguments: a `trl.SFTConfig`.
        callback: see `portraitkit.vlm.callbacks`.
        lora: a `peft.LoraConfig`, or None to train all that is not frozen.
        frozen: the vision tower must not be trained; checked now, and with the optimiser when training begins.

    Raises:
        ConfigError: it would be.
    """
    from trl import SFTTrainer

    data = _dataset(rows, prompt, limit_of(processor), target=True)
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        processing_class=processor,
        callbacks=[callback],
        peft_config=lora,
    )
    return _quiet(trainer, frozen)


def make_grpo_trainer(
    model: Any,
    processor: Any,
    prompt: str,
    rows: Sequence[Row],
    arguments: Any,
    callback: TrainerCallback,
    task: Task,
    mode: Mode,
    lora: Any = None,
    *,
    frozen: bool = False,
    last_norm: bool = False,
) -> Any:
    """TRL's GRPOTrainer with the task's rewards, one function for each part.

    Args:
        model: and `processor`, from `portraitkit.vlm.load`.
        processor: of the model.
        prompt: the user turn's text.
        rows: whose pictures are asked about.
        arguments: a `trl.GRPOConfig`.
        callback: see `portraitkit.vlm.callbacks`.
        task: that scores.
        mode: of the rewards.
        lora: a `peft.LoraConfig`, or None to train all that is not frozen.
        frozen: the vision tower must not be trained; checked now, and with the optimiser when training begins.
        last_norm: train the gains of the language part's last norm alone, unless there is a LoRA.

    Raises:
        ConfigError: it would be.
    """
    from peft import PeftModel
    from trl import GRPOTrainer

    if last_norm and lora is None and not isinstance(model, PeftModel):
        train_last_norm(model)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[*reward_functions(task, rows, mode)],
        args=arguments,
        train_dataset=_dataset(rows, prompt, limit_of(processor)),
        processing_class=processor,
        callbacks=[callback],
        peft_config=lora,
    )
    return _quiet(trainer, frozen)


def find_checkpoint(folder: Path, which: str | None) -> str | None:
    """The checkpoint to go on from: `latest` is the newest that was written to its end.

    Args:
        folder: of the run.
        which: a checkpoint's folder, latest, or None.

    Raises:
        CheckpointError: there is none, or it is incomplete.
    """
    if which is None:
        return None
    if which == "latest":
        found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit() and _complete(path)]
        if not found:
            raise CheckpointError(f"{folder}: holds no complete checkpoint; leave --resume-from-checkpoint out and use --overwrite")
        return str(max(found, key=lambda path: int(path.name.rpartition("-")[2])))
    if not _complete(Path(which)):
        raise CheckpointError(f"--resume-from-checkpoint {which}: no complete checkpoint; give a checkpoint-N folder or latest")
    return which


def check_finite(model: Any, state: Mapping[str, Any] | None = None) -> None:
    """Refuse a model that training has destroyed.

    Args:
        model: whose parameters are looked at.
        state: its weights by name, to be looked at instead, where the model holds a share of them only.

    Raises:
        TrainingStopped: a weight is not finite.
    """
    bad = [name for name, value in (model.named_parameters() if state is None else state.items()) if not bool(value.isfinite().all())]
    if bad:
        raise TrainingStopped(f"{bad[0]}: is not finite after training; nothing was saved, lower --learning-rate or raise --beta")


def _complete(path: Path) -> bool:
    """The trainer's state is what is written last; DeepSpeed keeps shares of the weights in a folder of its own."""
    return (path / "trainer_state.json").is_file() and any(any(path.glob(name)) for name in ("*.safetensors", "global_step*"))


def _dataset(rows: Sequence[Row], prompt: str | Sequence[str], limit: Limit | None, *, target: bool = False) -> Dataset:
    """Columns as TRL's trainers take them: prompt, images, the row's index, and for imitation the completion.

    Pictures that are files are opened when their row's turn comes; the others are held encoded. None has more pixels than the limit.
    """
    prompts = [prompt] * len(rows) if isinstance(prompt, str) else prompt
    in_files = all(isinstance(picture, Path) for row in rows for picture in row.pictures)
    columns: dict[str, list[Any]] = {
        "prompt": [[{"role": "user", "content": text}] for text in prompts],
        "images": [[str(picture) for picture in row.pictures] if in_files else shown(row, limit) for row in rows],
    }
    if target:
        columns["completion"] = [[{"role": "assistant", "content": row.target}] for row in rows]
    else:
        columns["index"] = list(range(len(rows)))
    data = Dataset.from_dict(columns)
    return data.with_transform(partial(_open, limit)) if in_files else data.cast_column("images", List(Image()))


def _open(limit: Limit | None, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """File names to pictures, by the one decoder."""
    if "images" in batch:
        batch["images"] = [[capped(to_pil(read_image(name).pixels), limit) for name in names] for names in batch["images"]]
    return batch


def _quiet(trainer: Any, frozen: bool) -> Any:
    """Without transformers' own progress line and prints; with the check of the vision tower."""
    if frozen:
        check_frozen(trainer.model)
        trainer.add_callback(StayFrozen())
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    _load_exactly(trainer)
    return trainer


def _load_exactly(trainer: Any) -> None:
    """Resuming loads every weight of a checkpoint, or fails.

    transformers' trainer takes a checkpoint's names as they stand in the file and ignores those that the model does not have. A
    Qwen2.5-VL is stored under its published names, which differ from its modules': it would go on from the weights it started with.
    """
    theirs = trainer._load_from_checkpoint

    def load(checkpoint: str, model: Any = None) -> None:
        if not (Path(checkpoint) / "config.json").is_file():
            return theirs(checkpoint, model)  # an adapter, which peft loads
        own = trainer.accelerator.unwrap_model(trainer.model if model is None else model)
        stored = type(own).from_pretrained(checkpoint, dtype=own.dtype)
        own.load_state_dict(stored.state_dict())
        return None

    trainer._load_from_checkpoint = load
