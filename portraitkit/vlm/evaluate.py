"""Held-out evaluation of a vision-language policy: greedy and sampled, beside a blind one and the best constant answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from portraitkit.stats import bootstrap_interval, paired_change
from portraitkit.vlm.generate import Completion, Decoding
from portraitkit.vlm.rows import Row, shuffled
from portraitkit.vlm.task import Mode, Task

CANDIDATES = 256


@dataclass(frozen=True)
class Evaluation:
    """What a policy earned on some rows."""

    greedy: Float[Tensor, " n"]  # reward of the greedy answer
    sampled: Float[Tensor, " n"]  # mean reward of the sampled answers
    blind: Float[Tensor, " n"]  # reward of the greedy answer to another row's picture
    answers: list[Completion]  # the greedy answers
    samples: list[list[Completion]]  # the sampled answers, a list a row
    metrics: dict[str, float]  # the task's own, of the greedy answers


def evaluate(
    model: Any, decoding: Decoding, task: Task, rows: Sequence[Row], mode: Mode, *, advance: Callable[[int], object] = lambda count: None
) -> Evaluation:
    """Evaluate a policy; several processes divide the rows, and all get all figures.

    Args:
        model: from `portraitkit.vlm.model`.
        decoding: the same before and after training.
        task: that scores.
        rows: held-out ones; two or more.
        mode: of the rewards.
        advance: called with the number of rows done; three passes over the rows are made.
    """
    greedy = [answers[0] for answers in decoding.complete(model, rows, greedy=True, advance=advance)]
    sampled = decoding.complete(model, rows, advance=advance)
    blind = [answers[0] for answers in decoding.complete(model, shuffled(rows), greedy=True, advance=advance)]
    metrics = task.metrics([answer.text for answer in greedy], [row.truth for row in rows]) if task.metrics else {}
    return Evaluation(
        score_all(task, greedy, rows, mode),
        torch.stack([score_all(task, column, rows, mode) for column in zip(*sampled, strict=True)]).mean(0),
        score_all(task, blind, rows, mode),
        greedy,
        sampled,
        metrics,
    )


def score_all(task: Task, answers: Sequence[Completion], rows: Sequence[Row], mode: Mode) -> Float[Tensor, " n"]:
    """The reward of one answer a row."""
    return torch.tensor([task.score(answer.text, row.truth, mode).reward for answer, row in zip(answers, rows, strict=True)])


def best_constant(task: Task, rows: Sequence[Row], mode: Mode, *, candidates: Sequence[str] = ()) -> tuple[str, float]:
    """The one answer that earns most when it is given to every row, and its mean reward.

    Searched among the perfect answers to up to 256 of the rows, what the task's `constants` finds for all rows, and the candidates
    given, on the very rows it is judged on. Where neither the task nor the rows know the best compromise, the floor is a lower bound.
    """
    step = max(len(rows) // CANDIDATES, 1)
    found = task.constants([row.truth for row in rows], mode) if task.constants else ()
    tried = dict.fromkeys([*(task.perfect(row.truth) for row in rows[::step]), *found, *candidates])
    mean, best = max((sum(task.score(text, row.truth, mode).reward for row in rows) / len(rows), text) for text in tried)
    return best, mean


def compare(before: Evaluation, after: Evaluation) -> dict[str, dict[str, object]]:
    """Greedy and sampled reward before and after, with bootstrap intervals over rows; the gain's is paired."""
    return {name: _change(getattr(before, name), getattr(after, name)) for name in ("greedy", "sampled")}


def _change(before: Float[Tensor, " n"], after: Float[Tensor, " n"]) -> dict[str, object]:
    change = paired_change(before, after)
    return {
        "before": change.before,
        "after": change.after,
        "ci95_before": bootstrap_interval(before),
        "ci95_after": bootstrap_interval(after),
        "gain": change.gain,
        "gain_ci95": change.ci95,
    }
