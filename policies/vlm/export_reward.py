"""A task's reward and truth in the form of other trainers: what the reward files of `align-vlm --export` import."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from policies.vlm.tasks import load_task
from portraitkit.errors import DataError
from portraitkit.vlm.rows import Row
from portraitkit.vlm.task import Mode, Task


def exported_reward(task: str, mode: Mode) -> Callable[[str, str], float]:
    """A function (answer, ground truth) -> the total that `score-completions` prints, rounded as it prints it.

    Raises:
        ConfigError: the task is unknown. What the function raises for a truth that the task cannot read is a DataError.
    """
    loaded = load_task(task)

    def reward(answer: str, ground_truth: str) -> float:
        return round(float(loaded.score(answer, loaded.read_truth(json.loads(ground_truth)), mode).reward), 10)

    return reward


class _Watched(Mapping[str, Any]):
    """A row's columns that remember which of them were read."""

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self.columns = columns
        self.read: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        value = self.columns[name]
        self.read[name] = value
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)


def ground_truth_of(task: Task, row: Row) -> str:
    """The columns that the task reads its truth from, as JSON; `Task.read_truth` makes the same truth of them again.

    Raises:
        DataError: they cannot be written as JSON.
    """
    watched = _Watched(row.columns)
    task.read_truth(watched)
    try:
        return json.dumps(watched.read, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"{row.name}: its truth cannot be written as JSON ({error}); give columns of text, numbers and lists") from error
