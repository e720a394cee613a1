"""Every option of `score-completions`. The docstring under a field is its help text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class ScoreConfig:
    """Score completions of a task with its verifiable rewards, without a model: one JSON line a row, on stdout."""

    rows: Positional[Annotated[Path, arg(metavar="ROWS.jsonl")]]
    """One JSON object a line: a string completion, and the task's truth (area; solution; AUs and labels). - reads stdin."""
    task: str = "area"
    """area, makeup, makeup-lips, emotion, or my_file.py:TASK."""
    mode: Literal["paper", "fixed"] = "fixed"
    """paper: the published rewards, faults included; fixed: the faults repaired."""
