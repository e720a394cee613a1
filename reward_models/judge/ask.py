"""What a judge answered about a pair in both orders, as text and read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from preference_data.contract import Answer, Unreadable
from preference_data.verdict import ORDERS, Verdict, about_files
from reward_models.judge.pairs import View
from reward_models.judge.preference_task import said


@dataclass(frozen=True)
class Judged:
    """What a judge answered about one pair.

    Attributes:
        pair: its id.
        texts: the answers as they came, a shown first and b shown first.
        answers: the same, read.
    """

    pair: str
    texts: tuple[str, str]
    answers: tuple[Answer | Unreadable, Answer | Unreadable]

    def verdicts(self, name: str) -> tuple[Verdict | None, Verdict | None]:
        """Of both orders, overall or on a dimension; None where the answer cannot be read."""
        verdicts: list[Verdict | None] = [
            None if isinstance(answer, Unreadable) else about_files(said(answer, name), order)
            for answer, order in zip(self.answers, ORDERS, strict=True)
        ]
        return verdicts[0], verdicts[1]

    def difference(self, name: str) -> float | None:
        """How much higher a is scored than b, the mean of both orders (of one, where the other cannot be read), -4 to 4."""
        found = []
        for answer, sign in zip(self.answers, (1, -1), strict=True):
            if isinstance(answer, Answer):
                first, second = answer.averages if name == "overall" else answer.scores[name]
                found.append(sign * (first - second))
        return sum(found) / len(found) if found else None

    def to_row(self) -> dict[str, Any]:
        """As a JSON line."""
        return {"pair": self.pair, "ab": self.texts[0], "ba": self.texts[1]}


def judged_of(view: View, pair: str, texts: tuple[str, str]) -> Judged:
    """Read two answers about one pair."""
    return Judged(pair, texts, (view.read(texts[0]), view.read(texts[1])))


def judged_from(view: View, row: Mapping[str, Any]) -> Judged:
    """The inverse of `Judged.to_row`."""
    return judged_of(view, row["pair"], (row["ab"], row["ba"]))
