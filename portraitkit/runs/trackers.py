"""Experiment trackers besides metrics.jsonl: wandb, trackio, tensorboard, through accelerate's own classes."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from portraitkit.errors import ConfigError, nearest

TRACKERS = ("wandb", "trackio", "tensorboard")


def check_trackers(names: list[str]) -> None:
    """Refuse what cannot be started, before anything is written.

    Raises:
        ConfigError: an unknown name, or a package that is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"--report-to {name}: unknown tracker{nearest(name, TRACKERS)}; use {', '.join(TRACKERS)}")
        if find_spec(name) is None:
            raise ConfigError(f"--report-to {name}: the package is not installed; pip install 'portraitkit[trackers]'")


def open_trackers(names: list[str], folder: Path, config: dict[str, Any]) -> list[Any]:
    """Start trackers; returns accelerate trackers (`log(values, step=...)`, `finish()`).

    Args:
        names: any of `TRACKERS`.
        folder: of the run; its name is the run's, tensorboard writes below it.
        config: logged as the run's settings.

    Raises:
        ConfigError: an unknown name, or a package that is not installed.
    """
    check_trackers(names)
    opened = []
    if names:
        from accelerate import PartialState

        PartialState()  # accelerate's trackers ask it which process they are in
    for name in names:
        from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

        if name == "tensorboard":
            tracker = TensorBoardTracker(run_name="tensorboard", logging_dir=folder)
        else:
            tracker = {"wandb": WandBTracker, "trackio": TrackioTracker}[name](run_name="portraitkit", name=folder.name)
        tracker.start()
        plain = {key: value if isinstance(value, int | float | str | bool) else str(value) for key, value in config.items()}
        tracker.store_init_configuration(plain)
        opened.append(tracker)
    return opened
