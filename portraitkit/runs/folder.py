"""Run folders: one folder holds everything about one run, and only one run, written by one process at a time."""

import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from portraitkit.config import config_to_dict, may_change
from portraitkit.errors import CheckpointError, ConfigError, RunFolderError, nearest
from portraitkit.files.atomic import UNFINISHED, clear_unfinished, write_text, writing
from portraitkit.files.jsonl import finite, read_json
from portraitkit.runs.locks import Lock

LOCK = ".lock"
START = {LOCK, "config.json", "environment.json", "metrics.jsonl"}
"""What a run has before its first result, beside what it unpacks; it goes again where a new run fails before that."""
PACKAGES = ("portraitkit", "torch", "diffusers", "transformers", "peft", "trl", "accelerate", "numpy")


class RunFolder:
    """An open run folder; use `RunFolder.open`.

    It holds `config.json`, `environment.json`, `metrics.jsonl` and whatever the run adds; `.lock` while it is being written (`locks.Lock`).
    A new run that fails before it has added anything leaves no folder.
    """

    def __init__(self, path: Path, lock: Lock) -> None:
        self.path, self.trackers, self._lock, self._new = path, list[Any](), lock, False
        self._metrics = (path / "metrics.jsonl").open("a", encoding="utf-8")

    @classmethod
    def open(
        cls,
        path: Path,
        config: dict[str, Any],
        *,
        command: list[str],
        seed: int,
        overwrite: bool = False,
        resume: str | None = None,
        free: Collection[str] = (),
        allow_changed: bool = False,
        report_to: list[str] | None = None,
    ) -> Self:
        """Create the folder of a new run, or open that of a run to be resumed.

        The resolved `config`, JSON-able, is compared with the stored one on resume, from a checkpoint or `latest`: options in `free` may
        differ (`portraitkit.config.may_change`), others where that is `allow_changed`. `overwrite` replaces the run that the folder holds;
        `command`, as typed, and `seed` are for the record; `report_to` has some of `TRACKERS`.

        Raises:
            RunFolderError: the folder holds another run or other files, cannot be written, another process writes it, or the
                configuration differs.
            CheckpointError: nothing to resume.
            ConfigError: a tracker is unknown or not installed.
        """
        check_run_folder(path, overwrite=overwrite, resume=resume, report_to=report_to)
        stored = path / "config.json"
        lock = Lock(path / LOCK, path, "is writing it", f"wait, or remove {path / LOCK} if that process is gone")
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock.take()
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be a run folder ({error.strerror}); choose another --output-dir") from error
        try:
            clear_unfinished(path)
            if resume is not None:
                before = read_json(stored)
                changed = differences(before, config, sorted((before.keys() | config.keys()) - set(free)))
                if changed and not allow_changed:
                    raise RunFolderError(
                        f"{path}: the run to resume had another configuration ({'; '.join(changed)}); use --allow-changed to go on"
                    )
            elif overwrite:
                (path / "metrics.jsonl").write_bytes(b"")  # killed at any of these files, the next start is not refused
                for item in sorted(path.iterdir(), key=lambda item: (item.name in START, item.name)):
                    if item.name != LOCK:
                        shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
            run = cls(path, lock)
            run.write_json("environment.json", environment(command, seed))
            run.write_json("config.json", config)  # the last: before it there is no run
            run.trackers = open_trackers(report_to or [], path, config)
        except BaseException:
            _release(path, lock, undo=resume is None)
            raise
        run._new = resume is None
        return run

    def log(self, step: int, **values: Any) -> None:
        """Append one line to metrics.jsonl, flushed, and tell the trackers; values that are not finite become null."""
        line = {"step": step, "time": round(time.time(), 3), **values}
        self._metrics.write(json.dumps(finite(line)) + "\n")
        self._metrics.flush()
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for tracker in self.trackers:
            tracker.log(numbers, step=step)

    def truncate_metrics(self, step: int, stage: str | None = None) -> None:
        """Drop lines logged after `step`, which the resumed run writes again, and lines that a killed process left unfinished; of one
        stage only, by their `kind` or `stage`, where it is given."""
        path = self.path / "metrics.jsonl"
        self._metrics.close()
        kept = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if _stays(line, step, stage)]
        with writing(path):
            write_text(path, "".join(line + "\n" for line in kept))
        self._metrics = path.open("a", encoding="utf-8")

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file in one piece."""
        with writing(self.path / name):
            write_text(self.path / name, json.dumps(finite(value), indent=2) + "\n")

    def close(self, *, undo: bool = False) -> None:
        """Finish trackers and release the lock; with `undo` a new run without any result goes."""
        for tracker in self.trackers:
            tracker.finish()
        self._metrics.close()
        _release(self.path, self._lock, undo=undo and self._new)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(undo=kind is not None)


class SilentRunFolder(RunFolder):
    """A run folder as the other processes of a distributed run have it: the first one writes, they write nothing."""

    def __init__(self, path: Path) -> None:
        self.path, self.trackers = path, []

    def _nothing(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    log = truncate_metrics = write_json = close = _nothing


def check_run_folder(
    path: Path,
    *,
    overwrite: bool = False,
    resume: str | None = None,
    report_to: list[str] | None = None,
    needed: Mapping[str, str | None] | None = None,
) -> None:
    """What `RunFolder.open` refuses, as far as it can be told without writing: for commands that work before they open their folder.

    `needed` are options and the files or folders that they name, which `overwrite` must not delete; for the rest see `RunFolder.open`, also
    for what is raised.
    """
    check_trackers(report_to or [])
    stored = path / "config.json"
    above = next((place for place in (path, *path.parents) if place.exists()), path)
    if above.exists() and not above.is_dir():
        raise RunFolderError(f"{path}: cannot be a run folder ({above} is a file); choose another --output-dir")
    if resume is not None and not stored.is_file():
        raise CheckpointError(f"{path}: holds no run to resume; leave --resume-from-checkpoint out to start one")
    if resume is None and path.is_dir() and not _only(path, START - {"config.json"}):
        if not (stored.is_file() and (path / "environment.json").is_file()):  # a model's folder has a config.json, too
            raise RunFolderError(f"{path}: holds files that are no run; choose another --output-dir or empty it")
        if not overwrite:
            raise RunFolderError(f"{path}: holds another run; use --overwrite, --resume-from-checkpoint latest, or another --output-dir")
        for option, name in (needed or {}).items():
            if name and Path(name).exists() and Path(name).resolve().is_relative_to(path.resolve()):
                raise RunFolderError(f"--overwrite would delete {option} {name}, which the run needs; choose another --output-dir")


def open_run(config: Any, command: list[str], **changes: Any) -> RunFolder:
    """Open the run folder that a command's options ask for: `CheckpointOptions` with a seed, and the folder as `folder` or
    `output_dir`. `changes` are arguments of `RunFolder.open`, which see, in place of theirs."""
    asked = {"overwrite": config.overwrite, "resume": config.resume_from_checkpoint, "allow_changed": config.allow_changed}
    asked |= {"report_to": list(config.report_to), "seed": config.seed, "free": may_change(type(config))}
    path = Path(getattr(config, "folder", None) or config.output_dir)
    return RunFolder.open(path, config_to_dict(config), command=command, **(asked | changes))


@dataclass(frozen=True)
class Maker:
    """How a command that goes on by itself where it was stopped tells its folders from others'."""

    name: str  # of the command
    mark: str  # an option that only this command stores
    holds: str  # what it makes and how, as in "a set made"
    free: Collection[str]  # options that may differ


def may_resume(path: Path, config: dict[str, Any], maker: Maker, *, overwrite: bool = False) -> bool:
    """Whether a folder holds unfinished or finished work of the same command with the same options, to go on with; with `overwrite` it is
    to be replaced, and only that this command made it is checked. RunFolderError: it holds work with other options, or something else."""
    stored = path / "config.json"
    if not stored.is_file():
        return False  # RunFolder.open refuses a folder with other files
    try:
        before = read_json(stored)
    except ValueError:
        before = None
    if not isinstance(before, dict) or maker.mark not in before:
        raise RunFolderError(f"{path}: holds something that {maker.name} did not make; choose another --output-dir")
    if changed := [] if overwrite else differences(before, config, [key for key in config if key not in maker.free]):
        changes = "; ".join(changed)
        raise RunFolderError(f"{path}: holds {maker.holds} with other options ({changes}); use --overwrite or another --output-dir")
    return not overwrite


def start_or_go_on(
    path: Path, config: dict[str, Any], maker: Maker, *, command: list[str], seed: int, overwrite: bool = False
) -> RunFolder:
    """Open the folder of a command that goes on by itself, with all its files where work goes on, empty where it starts; see
    `may_resume` and `RunFolder.open`."""
    resume = "latest" if may_resume(path, config, maker, overwrite=overwrite) else None
    return RunFolder.open(path, config, command=command, seed=seed, overwrite=overwrite, resume=resume, allow_changed=True)


def differences(stored: Mapping[str, Any], config: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The options of these names that a stored configuration has otherwise, as `seed 0 -> 1`."""
    now = finite(json.loads(json.dumps(config)))
    return [f"{name} {stored.get(name)!r} -> {now.get(name)!r}" for name in names if stored.get(name) != now.get(name)]


def environment(command: list[str], seed: int) -> dict[str, Any]:
    """What the run ran on: versions, hardware, revision, the exact command."""
    import torch

    from portraitkit.processor import cpu_bf16

    return {
        "command": [Path(command[0]).name, *command[1:]] if command else [],
        "seed": seed,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_bf16": cpu_bf16(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions_of(PACKAGES),
        "revision": _revision(),
    }


def versions_of(packages: Iterable[str]) -> dict[str, str | None]:
    """Installed versions; None of what is not installed."""
    return {name: next((found.version for found in distributions(name=name)), None) for name in packages}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: *(.+)", info.read_text(encoding="utf-8"), re.MULTILINE) if info.is_file() else None
    return found[1].strip() if found else platform.processor()


def _revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _stays(line: str, step: int, stage: str | None) -> bool:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return False
    return row["step"] <= step or (stage is not None and stage not in (row.get("kind"), row.get("stage")))


def _release(path: Path, lock: Lock, *, undo: bool) -> None:
    """Let go of a folder; with `undo` and nothing in it but `START`, remove it."""
    if undo := undo and _only(path, START | {"unpacked"}):
        shutil.rmtree(path / "unpacked", ignore_errors=True)
        for name in START - {LOCK}:
            (path / name).unlink(missing_ok=True)
    lock.release()
    if undo:
        with suppress(OSError):  # another process took it
            path.rmdir()


def _only(path: Path, names: set[str]) -> bool:
    """Whether a folder holds nothing, or beside an empty log no more than files of these names, whole or cut by a kill."""
    found, log = {item.name for item in path.iterdir() if not UNFINISHED.fullmatch(item.name)}, path / "metrics.jsonl"
    return found <= {LOCK} or (found <= names and log.is_file() and not log.stat().st_size)


# ---- experiment trackers besides metrics.jsonl, through accelerate's own classes

TRACKERS = ("wandb", "trackio", "tensorboard")


def check_trackers(names: list[str]) -> None:
    """Refuse what cannot be started, before anything is written; ConfigError: an unknown name, or a package that is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"--report-to {name}: unknown tracker{nearest(name, TRACKERS)}; use {', '.join(TRACKERS)}")
        if find_spec(name) is None:
            raise ConfigError(f"--report-to {name}: the package is not installed; pip install 'portraitkit[trackers]'")


def open_trackers(names: list[str], folder: Path, config: dict[str, Any]) -> list[Any]:
    """Start trackers, see `check_trackers`; returns accelerate's (`log(values, step=...)`, `finish()`). The folder's name is the run's,
    tensorboard writes below it; the settings in `config` are logged."""
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
