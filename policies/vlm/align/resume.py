"""Where the training of an `align-vlm` run begins: at its first stage, or where an earlier start of it was stopped."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from portraitkit.errors import CheckpointError
from portraitkit.vlm.trainers import find_checkpoint


@dataclass(frozen=True)
class Start:
    """What is left to train.

    Attributes:
        stage: the first one; those before it are done and their models stored.
        checkpoint: of that stage, or None to begin it.
    """

    stage: str
    checkpoint: str | None = None

    @property
    def step(self) -> int:
        """Updates of its stage that are done; -1 without a checkpoint."""
        return int(Path(self.checkpoint).name.rpartition("-")[2]) if self.checkpoint else -1


def stage_model(run: Path, stage: str, stages: Sequence[str]) -> Path:
    """Where a stage leaves its model: the last one's is the run's."""
    return run / "model" if stage == stages[-1] else run / stage / "model"


def find_start(run: Path, stages: Sequence[str], which: str | None) -> Start:
    """The stage and checkpoint to go on from.

    Args:
        run: the run's folder; checkpoints of GRPO stand in it, those of another stage in the stage's folder.
        stages: of the run, in order.
        which: as --resume-from-checkpoint has it: None, latest, or a checkpoint's folder.

    Raises:
        CheckpointError: there is none, it is incomplete, or is not of one of the stages.
    """
    if which is None:
        return Start(stages[0])
    if which != "latest":
        return _given(run, stages, find_checkpoint(run, which) or "")
    for place in reversed(range(len(stages))):
        stage = stages[place]
        before = stage_model(run, stages[place - 1], stages) if place else None
        if before is not None and not before.is_dir():
            continue
        try:
            return Start(stage, find_checkpoint(_folder(run, stage), "latest"))
        except CheckpointError:
            if before is not None:
                return Start(stage)
    raise CheckpointError(f"{run}: holds no complete checkpoint; leave --resume-from-checkpoint out and use --overwrite")


def _given(run: Path, stages: Sequence[str], checkpoint: str) -> Start:
    """A checkpoint that the user names belongs to the stage in whose folder it stands; another run's are GRPO's."""
    place = Path(checkpoint).resolve().parent
    stage = "sft" if place.name == "sft" else "grpo"
    if stage not in stages:
        raise CheckpointError(f"--resume-from-checkpoint {checkpoint}: is of the stage {stage}; this run has --stages {' '.join(stages)}")
    start = Start(stage, checkpoint)
    before = [stage_model(run, name, stages) for name in stages[: stages.index(stage)]]
    if before and not before[-1].is_dir():
        raise CheckpointError(f"--resume-from-checkpoint {checkpoint}: {before[-1]}, which it started from, is gone; use --overwrite")
    later = [_folder(run, name) for name in stages[stages.index(stage) + 1 :]]
    if any(next(folder.glob("checkpoint-*"), None) for folder in later):
        raise CheckpointError(
            f"--resume-from-checkpoint {checkpoint}: a later stage has checkpoints already; give latest, or use --overwrite"
        )
    return start


def _folder(run: Path, stage: str) -> Path:
    return run if stage == "grpo" else run / stage
