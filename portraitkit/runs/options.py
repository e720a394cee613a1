"""Options that every command which trains has. The docstring of a class is the title of its group in `--help`."""

from dataclasses import dataclass
from typing import Annotated

from portraitkit.config import MAY_CHANGE, AtLeast0, AtLeast1, Options, Range
from portraitkit.hub import check_repo_name


@dataclass(frozen=True)
class CheckpointOptions(Options):
    """Checkpoints, trackers and the hub."""

    checkpointing_steps: Annotated[AtLeast0, MAY_CHANGE] = 20
    """Training steps between checkpoints; 0: one only where the run stops."""
    checkpoints_total_limit: Annotated[int | None, Range(ge=1), MAY_CHANGE] = 2
    """Checkpoints kept; None keeps all."""
    resume_from_checkpoint: Annotated[str | None, MAY_CHANGE] = None
    """A checkpoint folder, or latest."""
    allow_changed: Annotated[bool, MAY_CHANGE] = False
    """Resume although the configuration, or the number of processes, differs from the checkpoint's."""
    overwrite: Annotated[bool, MAY_CHANGE] = False
    """Replace the run that --output-dir holds."""
    report_to: Annotated[tuple[str, ...], MAY_CHANGE] = ()
    """Trackers besides metrics.jsonl: wandb, trackio, tensorboard."""
    push_to_hub: Annotated[str | None, MAY_CHANGE] = None
    """OWNER/NAME of a hub repository that takes the finished model and its card, no pictures; made, private, before training if it is not
    there."""

    def check(self) -> None:
        """Refuse what can be no repository; ConfigError: the hub's rules do not allow the name."""
        if self.push_to_hub is not None:
            check_repo_name(self.push_to_hub)


@dataclass(frozen=True)
class PlanOptions(Options):
    """Dry run."""

    dry_run: Annotated[bool, MAY_CHANGE] = False
    """Print what the run needs on each device, refuse what cannot fit, and stop."""
    device_memory: Annotated[float | None, Range(gt=0, lt=1e6, rule="must be above 0, in GiB, such as 24 or 80"), MAY_CHANGE] = None
    """Memory of a device in GiB; that of the GPU that is here if not given."""
    plan_devices: Annotated[AtLeast1, MAY_CHANGE] = 1
    """Devices that share the run."""
