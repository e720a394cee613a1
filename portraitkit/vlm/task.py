"""The contract of a task with verifiable rewards: what a row must hold, how an answer is read, what it earns.

A task is one file with one exported constant `TASK`; `score-completions --task my_file.py:TASK` loads a user's own by the road
the built-in ones take. Two modes: `paper` is what was published, faults included, for comparison; `fixed` repairs the faults.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Mode = Literal["paper", "fixed"]


@dataclass(frozen=True)
class Score:
    """What a completion earned.

    Attributes:
        reward: the total, within the task's range.
        parts: the rewards that were added up; None where one does not apply to the row.
        parsed: the answer as it was read, as JSON values; None where it could not be read.
    """

    reward: float
    parts: dict[str, float | None]
    parsed: Any


@dataclass(frozen=True)
class Task:
    """A task with verifiable rewards.

    Attributes:
        name: as `--task` takes it.
        prompt: the instruction; it states the answer's form that `score` reads.
        read_truth: a row's columns to the truth; raises DataError where they break the schema.
        score: (completion, truth, mode) -> Score. A completion that cannot be read earns the mode's minimum: it is no exception.
        ranges: smallest and largest reward of each mode.
        perfect: a completion that earns the maximum for a truth.
    """

    name: str
    prompt: str
    read_truth: Callable[[Mapping[str, Any]], Any]
    score: Callable[[str, Any, Mode], Score]
    ranges: Mapping[Mode, tuple[float, float]]
    perfect: Callable[[Any], str]
