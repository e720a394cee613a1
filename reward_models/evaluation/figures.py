"""How right, how consistent and how biased a judge is, from its answers to pairs shown in both orders.

For a name, "overall" or a dimension, over the pairs whose truth is known:

    acc_forward     a shown first: the verdict is the truth, a tie included; an answer that cannot be read is wrong
    acc_reversed    b shown first
    acc_average     the mean of both
    acc_consistent  right in both orders; ci95 is its bootstrap interval, whole people drawn
    flip_rate       the two orders give different verdicts (another winner, or a tie), among the pairs where both can be read
    p_first         the candidate shown first wins, among the verdicts of both orders that are no tie
    tie_rate        ties among the verdicts that can be read
    tau             three-way accuracy of the mean score difference of both orders, a tie up to a threshold fitted on other pairs
    diff            the sign of that difference, ties of the truth dropped; a difference of exactly 0 counts one half

The contract's overall choice is never a tie: pairs whose overall truth is one count for tau alone.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from portraitkit.stats import cluster_interval, paired_change
from preference_data.contract import Unreadable
from preference_data.schema import DIMENSIONS
from preference_data.verdict import Verdict
from reward_models.judge.pairs import Judged, JudgedPair

NAMES = ("overall", *DIMENSIONS)
SMALLEST_GROUP = 5  # Pairs that a group needs to be called the worst one


def truth_of(pair: JudgedPair, name: str) -> Verdict | None:
    """What is known about a pair's files."""
    return pair.overall if name == "overall" else pair.verdicts.get(name)


def all_figures(pairs: Sequence[JudgedPair], judged: Sequence[Judged], thresholds: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Name -> the figures of the module, overall and for each dimension that is known of any pair."""
    rows = {name: figures(pairs, judged, name, thresholds.get(name, 0.0)) for name in NAMES}
    return {name: row for name, row in rows.items() if row["n"]}


def figures(pairs: Sequence[JudgedPair], judged: Sequence[Judged], name: str, threshold: float = 0.0) -> dict[str, Any]:
    """The figures of one name; score differences up to `threshold` are ties in tau."""
    forward, reversed_ = right(pairs, judged, name)
    both = forward * reversed_
    verdicts = [one.verdicts(name) for one, pair in zip(judged, pairs, strict=True) if _counts(pair, name)]
    readable = [(first, second) for first, second in verdicts if first is not None and second is not None]
    said = [(verdict, place) for pair in verdicts for place, verdict in enumerate(pair) if verdict is not None]
    decided = [(verdict == "a") == (place == 0) for verdict, place in said if verdict != "tie"]
    rows = differences(pairs, judged, name)
    diff = [0.5 if value == 0 else (value > 0) == (truth == "a") and value == value for value, truth in rows if truth != "tie"]
    return {
        "acc_forward": _mean(forward),
        "acc_reversed": _mean(reversed_),
        "acc_average": _mean((forward + reversed_) / 2),
        "acc_consistent": _mean(both),
        "ci95": list(cluster_interval(both, [pair.identity or pair.id for pair in pairs])),
        "flip_rate": _share([first != second for first, second in readable]),
        "p_first": _share(decided),
        "tie_rate": _share([verdict == "tie" for verdict, _ in said]),
        "tau": _share([by_threshold(value, threshold) == truth for value, truth in rows]),
        "diff": _share(diff),
        "n": int(forward.isfinite().sum()),
    }


def right(pairs: Sequence[JudgedPair], judged: Sequence[Judged], name: str) -> tuple[Tensor, Tensor]:
    """1 where the answer is right, 0 where it is wrong or cannot be read, NaN where nothing is known; a first and b first, both (n)."""
    rows = []
    for pair, one in zip(pairs, judged, strict=True):
        if pair.id != one.pair:
            raise ValueError(f"answers about {one.pair} laid beside pair {pair.id}")
        truth = truth_of(pair, name)
        rows.append([float(verdict == truth) if _counts(pair, name) else math.nan for verdict in one.verdicts(name)])
    correct = torch.tensor(rows, dtype=torch.float64).view(-1, 2)
    return correct[:, 0], correct[:, 1]


def gain(pairs: Sequence[JudgedPair], before: Sequence[Judged], after: Sequence[Judged]) -> dict[str, Any]:
    """Paired difference of the overall acc_consistent, after minus before, with its bootstrap interval by person."""
    old, new = (torch.prod(torch.stack(right(pairs, judged, "overall")), 0) for judged in (before, after))
    people = [pair.identity or pair.id for pair in pairs]
    return {"overall": paired_change(old, new).gain, "ci95": list(cluster_interval(new - old, people))}


def majority(pairs: Sequence[JudgedPair]) -> dict[str, float]:
    """Accuracy over both orders of the best answer that is always the same: first, second or tie."""
    shares = {}
    for name in NAMES:
        truths = [truth_of(pair, name) for pair in pairs if _counts(pair, name)]
        if truths:
            ties = sum(truth == "tie" for truth in truths) / len(truths)
            shares[name] = max(ties, (1 - ties) / 2)
    return shares


def unreadable_share(judged: Sequence[Judged]) -> float:
    """Share of answers that cannot be read."""
    answers = [answer for one in judged for answer in one.answers]
    return sum(isinstance(answer, Unreadable) for answer in answers) / max(len(answers), 1)


def differences(pairs: Sequence[JudgedPair], judged: Sequence[Judged], name: str) -> list[tuple[float, Verdict]]:
    """(mean score difference, truth) of each pair with a truth; NaN where neither answer can be read."""
    rows = []
    for pair, one in zip(pairs, judged, strict=True):
        truth = truth_of(pair, name)
        if truth is not None:
            value = one.difference(name)
            rows.append((math.nan if value is None else value, truth))
    return rows


def by_threshold(value: float, threshold: float) -> Verdict | None:
    """The verdict of a score difference; None for NaN."""
    if math.isnan(value):
        return None
    return "tie" if abs(value) <= threshold else "a" if value > 0 else "b"


def fit_thresholds(pairs: Sequence[JudgedPair], judged: Sequence[Judged]) -> dict[str, float]:
    """Name -> the tie threshold of the highest tau on these pairs, the smallest of several; never fit it on held-out ones."""
    thresholds = {}
    for name in NAMES:
        rows = differences(pairs, judged, name)
        sizes = sorted({0.0, *(abs(value) for value, _ in rows if not math.isnan(value))})
        between = [0.0, *((low + high) / 2 for low, high in zip(sizes, sizes[1:], strict=False))]
        thresholds[name] = max(between, key=lambda at: (sum(by_threshold(value, at) == truth for value, truth in rows), -at))
    return thresholds


def by_group(pairs: Sequence[JudgedPair], judged: Sequence[Judged]) -> dict[str, Any]:
    """Column -> value -> overall figures, where age band, gender or skin tone are recorded, and each column's worst group."""
    table: dict[str, Any] = {}
    for column in sorted({column for pair in pairs for column in pair.groups}):
        rows: dict[str, Any] = {}
        for value in sorted({pair.groups[column] for pair in pairs if column in pair.groups}):
            some = [(pair, one) for pair, one in zip(pairs, judged, strict=True) if pair.groups.get(column) == value]
            group = figures([pair for pair, _ in some], [one for _, one in some], "overall")
            rows[value] = {name: group[name] for name in ("acc_average", "acc_consistent", "ci95", "p_first", "n")}
        known = {value: row for value, row in rows.items() if row["n"] >= SMALLEST_GROUP}
        worst = min(known, key=lambda value: known[value]["acc_consistent"]) if known else None
        table[column] = {"groups": rows, "worst": worst}
    return table


def calibration(pairs: Sequence[JudgedPair], judged: Sequence[Judged], bins: int = 6) -> list[dict[str, float]]:
    """Is a larger score difference right more often? Pairs by the size of the overall difference, in parts of equal count."""
    rows = sorted((abs(value), float((value > 0) == (truth == "a"))) for value, truth in differences(pairs, judged, "overall") if value)
    rows = [row for row in rows if not math.isnan(row[0])]
    size = max(math.ceil(len(rows) / bins), 1)
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [
        {"difference": sum(value for value, _ in part) / len(part), "accuracy": sum(hit for _, hit in part) / len(part), "n": len(part)}
        for part in parts
    ]


def _counts(pair: JudgedPair, name: str) -> bool:
    truth = truth_of(pair, name)
    return truth is not None and not (name == "overall" and truth == "tie")


def _mean(values: Tensor) -> float | None:
    known = values[values.isfinite()]
    return float(known.mean()) if len(known) else None


def _share(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
