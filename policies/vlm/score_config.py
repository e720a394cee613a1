"""Every option of `score-completions`. The docstring under a field is its help text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from portraitkit.errors import ConfigError


@dataclass(frozen=True)
class ScoreConfig:
    """Score completions of a task with its verifiable rewards, without a model: one JSON line a row, on stdout."""

    rows: Positional[Annotated[Path, arg(metavar="ROWS.jsonl")]]
    """One JSON object a line: a string completion, and the task's truth (area; solution; AUs and labels; verdict). - reads stdin."""
    task: str = "area"
    """area, makeup, makeup-lips, emotion, preference, or my_file.py:TASK."""
    mode: Literal["paper", "fixed"] = "fixed"
    """paper: the published rewards, faults included; fixed: the faults repaired."""
    metrics: Path | None = None
    """Write what the field reports of all rows together to this JSON file: the task's metrics and the mean reward."""
    au_list: str = "all"
    """emotion: units that F1 is taken over: all, disfa, bp4d, raf-au, faba, emola-disfa, emola-bp4d, emola-faba, or 1,2,4 ..."""
    group_by: str = ""
    """emotion: a column, or a key of meta_info, for whose values the figures are given one by one, too."""
    judge_url: str = ""
    """emotion: an OpenAI-compatible endpoint, as http://localhost:8000/v1, that scores each text against its description from 1 to 10."""
    judge_model: str = ""
    """The judge's name at that endpoint."""
    judge_key_env: str = ""
    """Environment variable that holds the endpoint's key, if it needs one."""

    def __post_init__(self) -> None:
        """Refuse options that would do nothing.

        Raises:
            ConfigError: an option of the emotion figures without --metrics or with another task.
        """
        for name, default in (("au_list", "all"), ("group_by", ""), ("judge_url", "")):
            value = getattr(self, name)
            if value != default and (self.metrics is None or self.task != "emotion"):
                raise ConfigError(f"--{name.replace('_', '-')} {value}: only with --task emotion and --metrics FILE.json")
        if bool(self.judge_url) != bool(self.judge_model):
            raise ConfigError("--judge-url and --judge-model: give both, or none")
