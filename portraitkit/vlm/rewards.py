"""A task's rewards as TRL's reward functions, one for each part, so that TRL weighs and logs them one by one."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from portraitkit.vlm.rows import Row
from portraitkit.vlm.task import Mode, Score, Task

RewardFunction = Callable[..., list[float | None]]


def reward_functions(task: Task, rows: Sequence[Row], mode: Mode) -> list[RewardFunction]:
    """One function `f(completions, index, **columns) -> rewards` for each part of the task's reward; their sum is the total.

    Args:
        task: that scores.
        rows: the training rows; the data set's column `index` points into them.
        mode: paper or fixed.

    Returns:
        The functions, named after the parts; None where a part does not apply to a row.
    """

    @lru_cache(maxsize=4096)
    def score(completion: str, index: int) -> Score:
        return task.score(completion, rows[index].truth, mode)

    def function(name: str) -> RewardFunction:
        def part(completions: list[Any], index: list[int], **_: Any) -> list[float | None]:
            return [score(text_of(completion), at).parts[name] for completion, at in zip(completions, index, strict=True)]

        part.__name__ = name
        return part

    return [function(name) for name in part_names(task, rows[0], mode)]


def part_names(task: Task, row: Row, mode: Mode) -> list[str]:
    """The parts that a task's reward adds up."""
    return list(task.score(task.perfect(row.truth), row.truth, mode).parts)


def text_of(completion: Any) -> str:
    """A completion as TRL hands it over, a list of messages or a string, as text."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
