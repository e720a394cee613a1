"""Rewards in verl's form: what the reward files of `align-vlm --export` import, and `--reward-file`, one in place of a task's own."""

import inspect
import json
import math
from collections import UserDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from policies.vlm.tasks import load_task
from portraitkit.discover import load_object
from portraitkit.errors import ConfigError, DataError
from portraitkit.vlm.rows import Row
from portraitkit.vlm.task import Mode, Score, Task

CALLED = ("data_source", "solution_str", "ground_truth", "extra_info")


def exported_reward(task: str, mode: Mode) -> Callable[[str, str], float]:
    """A function (answer, ground truth) -> the total that `score-completions` prints, rounded as it prints it.
    ConfigError: the task is unknown. What the function raises for a truth that the task cannot read is a DataError."""
    loaded = load_task(task)

    def reward(answer: str, ground_truth: str) -> float:
        return round(float(loaded.score(answer, loaded.read_truth(json.loads(ground_truth)), mode).reward), 10)

    return reward


class _Watched(UserDict[str, Any]):
    """A row's columns that remember which of them were read."""

    def __init__(self, columns: Mapping[str, Any]) -> None:
        super().__init__(columns)
        self.read: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        return self.read.setdefault(name, super().__getitem__(name))


def ground_truth_of(task: Task, row: Row) -> str:
    """The columns that the task reads its truth from, as JSON that it reads again; DataError where they cannot be written so."""
    watched = _Watched(row.columns)
    task.read_truth(watched)
    try:
        return json.dumps(watched.read, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"{row.name}: its truth cannot be written as JSON ({error}); give columns of text, numbers and lists") from error


@dataclass(frozen=True)
class JudgedTruth:
    """What a row gives such a function."""

    truth: Any  # the task's own
    ground_truth: Any  # the row's column `ground_truth`, or the task's truth columns as JSON, as `--export` writes them
    extra_info: Mapping[str, Any]  # the row's column of that name, or nothing


def with_reward_file(task: Task, where: str) -> Task:
    """The task with the same rows, prompt and perfect answers, rewarded by a function of the user's, `my_file.py:compute_score`. It is
    called as verl calls it, data_source, solution_str, ground_truth, extra_info by name, and returns a number, or an object with a number
    `score`.
    ConfigError: there is no such function, or it takes other arguments."""
    function = load_object(where)
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise ConfigError(f"--reward-file {where}: must be a plain function compute_score({', '.join(CALLED)})")
    try:
        inspect.signature(function).bind(**dict.fromkeys(CALLED))
    except TypeError as error:
        raise ConfigError(f"--reward-file {where}: must take {', '.join(CALLED)} by name ({error})") from error
    source = f"portraitkit/{task.name}"

    def read_truth(columns: Mapping[str, Any]) -> JudgedTruth:
        truth = task.read_truth(columns)
        given = columns.get("ground_truth")
        own = ground_truth_of(task, Row((), truth, "", columns, "row")) if given is None else given
        extra = columns.get("extra_info")
        return JudgedTruth(truth, own, dict(extra) if isinstance(extra, Mapping) else {})

    def score(completion: str, truth: JudgedTruth, mode: Mode) -> Score:
        found = function(data_source=source, solution_str=completion, ground_truth=truth.ground_truth, extra_info=dict(truth.extra_info))
        value = found.get("score") if isinstance(found, Mapping) else found
        if isinstance(value, bool | str) or value is None or not math.isfinite(value):
            raise DataError(f"--reward-file {where}: gave {found!r}; must give a finite number, or an object with one as score")
        return Score(float(value), {"reward": float(value)}, None)

    metrics, most, constants, whole = task.metrics, task.most, task.constants, task.whole
    return replace(
        task,
        read_truth=read_truth,
        score=score,
        perfect=lambda truth: task.perfect(truth.truth),
        metrics=None if metrics is None else lambda completions, truths: metrics(completions, [truth.truth for truth in truths]),
        most=None if most is None else lambda truth, mode: most(truth.truth, mode),
        constants=None if constants is None else lambda truths, mode: constants([truth.truth for truth in truths], mode),
        whole=None if whole is None else lambda truth: whole(truth.truth),
    )
