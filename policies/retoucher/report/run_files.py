"""The files of a run folder that a report is made of, read and checked."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.retoucher.report.pictures import Photo
from policies.retoucher.report.words import Measure, ordered
from portraitkit.errors import RunFolderError

Json = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """The files of a run folder, read."""

    folder: Path
    config: Json
    environment: Json
    summary: Json
    train: list[Json]
    validation: list[Json]
    photos: list[Photo]

    @property
    def rewards(self) -> list[str]:
        """Names of the rewards in use."""
        return [str(name) for key in ("rewards", "reward") for name in self.config.get(key) or []]

    @property
    def judges(self) -> list[str]:
        """Those of them that are judges."""
        return [name for name in self.rewards if name.startswith("judge:")]


def read_run(folder: Path) -> Run:
    """Read everything a report is made of; missing pictures and per-photo values are fine.

    Raises:
        RunFolderError: a file is missing or is not valid JSON.
    """
    lines = _read_lines(folder / "metrics.jsonl")
    values = folder / "held_out" / "values.jsonl"
    photos = [
        Photo(row, str(line.get("id", row)), numbers(line.get("before")), numbers(line.get("after")))
        for row, line in enumerate(_read_lines(values) if values.is_file() else [])
    ]
    return Run(
        folder=folder,
        config=_read_json(folder / "config.json"),
        environment=_read_json(folder / "environment.json"),
        summary=_read_json(folder / "summary.json"),
        train=[line for line in lines if line.get("kind") == "train"],
        validation=[line for line in lines if line.get("kind") == "validation"],
        photos=photos,
    )


def read_measures(run: Run) -> dict[str, Measure]:
    """Everything measured on the held-out photos, in reading order."""
    held_out, untouched = run.summary.get("held_out") or {}, numbers(run.summary.get("untouched"))
    rewards = run.rewards
    out = {}
    for name in ordered(held_out, rewards):
        change = held_out[name]
        low, high = (number(end) for end in change.get("ci95") or (None, None))
        out[name] = Measure(
            name=name,
            higher_is_better=name in ("reward", "verifiable", *rewards),
            untouched=untouched.get(name, math.nan),
            before=number(change.get("before")),
            after=number(change.get("after")),
            gain=number(change.get("gain")),
            low=low,
            high=high,
        )
    return out


def _read_json(path: Path) -> Json:
    text = _read_text(path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise RunFolderError(f"{path}: not valid JSON ({error.msg}, line {error.lineno}); is the run damaged?") from error
    if not isinstance(value, dict):
        raise RunFolderError(f"{path}: holds {type(value).__name__}, expected an object")
    return value


def _read_lines(path: Path) -> list[Json]:
    out = []
    for place, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise RunFolderError(f"{path} line {place}: not valid JSON ({error.msg}); remove the line or run again") from error
        if not isinstance(value, dict):
            raise RunFolderError(f"{path} line {place}: holds {type(value).__name__}, expected an object")
        out.append(value)
    return out


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise RunFolderError(f"{path}: missing; a report needs the folder of a finished align-retoucher run")
    return path.read_text(encoding="utf-8")


def number(value: object) -> float:
    """A logged value as a float; not finite where it is null or no number."""
    return float(value) if isinstance(value, int | float) else math.nan


def numbers(values: object) -> dict[str, float]:
    """A logged object of values as floats; empty where there is none."""
    return {str(name): number(value) for name, value in values.items()} if isinstance(values, dict) else {}
