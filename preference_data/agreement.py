"""How far annotators agree and which system wins: Krippendorff's alpha, equal verdicts, Bradley-Terry scores, and their tables."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from portraitkit import votes
from preference_data.annotations import Judgement, Judgements, both_orders, conflicts, table_of
from preference_data.schema import ASPECTS, TITLES, Pair
from preference_data.verdict import Verdict

SCALE: tuple[Verdict, ...] = ("b", "tie", "a")


@dataclass(frozen=True)
class Agreement:
    """Agreement of several annotators on one dimension."""

    # Krippendorff's alpha of the verdicts on the ordinal scale b, tie, a; None where it is not defined (fewer than two annotators in
    # common, or one verdict everywhere)
    alpha: float | None
    equal: float | None  # share of equal verdicts among all pairs of annotators of the same pair; None where nobody shares a pair
    pairs: int  # how many pairs have at least two verdicts


def agreement(judgements: Judgements) -> dict[str, Agreement]:
    """Agreement on each of the five dimensions and overall."""
    ids = sorted({pair for rows in judgements.values() for pair in rows})
    result = {}
    for dimension in ASPECTS:
        verdicts = [[rows[pair][dimension] for rows in judgements.values() if dimension in rows.get(pair, {})] for pair in ids]
        counts = np.array([[values.count(verdict) for verdict in SCALE] for values in verdicts], int).reshape(len(ids), len(SCALE))
        counts = counts[counts.sum(1) >= 2]
        alpha = votes.ordinal_alpha(counts)
        seen = counts.sum(1)
        equal = (counts * (counts - 1)).sum(1) / (seen * (seen - 1))
        result[dimension] = Agreement(alpha if np.isfinite(alpha) else None, float(equal.mean()) if len(equal) else None, len(counts))
    return result


def bradley_terry(duels: list[tuple[str, str, Verdict]], *, prior: float = 0.5) -> dict[str, float]:
    """Strengths of systems from duels (system of a, system of b, verdict); a tie is half a win for each, a duel of a system with itself
    counts for nothing. For `prior` see `portraitkit.votes.bradley_terry`.

    Returns system -> log-odds strength, mean 0: P(x beats y) = sigmoid(strength of x - strength of y).
    """
    duels = [duel for duel in duels if duel[0] != duel[1]]
    names = sorted({name for duel in duels for name in duel[:2]})
    if not names:
        return {}
    row = {name: place for place, name in enumerate(names)}
    wins = np.zeros((len(names), len(names)))
    for a, b, verdict in duels:
        share = {"a": 1.0, "tie": 0.5, "b": 0.0}[verdict]
        wins[row[a], row[b]] += share
        wins[row[b], row[a]] += 1 - share
    return dict(zip(names, votes.bradley_terry(wins, prior=prior).tolist(), strict=True))


def agreement_report(judgements: list[Judgement], pairs: list[Pair]) -> dict[str, Any]:
    """Agreement among annotators and between the orders of one annotator, Bradley-Terry scores of the generators, conflicts.

    Returns:
        `annotators`: name -> judged pairs; `agreement`: dimension -> alpha, equal, pairs; `flips`: annotator -> dimension -> share of pairs
        whose winner changes with the order; `bradley_terry`: generator -> log-odds strength of the overall verdicts; `conflicts`: pair ->
        disputed dimensions.
    """
    joined = both_orders(judgements)
    names = {pair.id: pair for pair in pairs}
    duels: list[tuple[str, str, Verdict]] = [
        (names[row.pair].origin_a.generator, names[row.pair].origin_b.generator, row.overall)
        for row in joined
        if row.pair in names and row.role == "annotator"
    ]
    table = table_of(joined)
    return {
        "annotators": {name: len(rows) for name, rows in table.items()},
        "agreement": {name: vars(found) for name, found in agreement(table).items()} if table else {},
        "flips": _flips(judgements),
        "bradley_terry": bradley_terry(duels),
        "conflicts": conflicts(judgements),
    }


def print_agreement(judgements: list[Judgement], pairs: list[Pair]) -> None:
    """Print the report's tables on standard output."""
    report = agreement_report(judgements, pairs)
    if not report["annotators"]:
        return
    console = Console()
    flips = report["flips"]
    table = Table(title=f"Agreement of {', '.join(report['annotators'])} (Krippendorff's alpha)", title_justify="left")
    table.add_column("dimension")
    for column in ("alpha", "equal", "pairs", *(f"flips of {name}" for name in flips)):
        table.add_column(column, justify="right")
    for name in ASPECTS:
        found = Agreement(**report["agreement"][name])
        row = [TITLES.get(name, "Overall"), _number(found.alpha), _number(found.equal), str(found.pairs)]
        table.add_row(*row, *(_number(flips[annotator][name]) for annotator in flips))
    console.print(table)
    if report["bradley_terry"]:
        order = sorted(report["bradley_terry"].items(), key=lambda item: -item[1])
        scores = ", ".join(f"{name} {score:+.2f}" for name, score in order)
        console.print(f"Bradley-Terry, overall: {scores}", markup=False, highlight=False)
    if count := len(report["conflicts"]):
        console.print(f"{count} pairs in conflict: a senior settles them on the page (annotate DATA --web)", highlight=False)


def _flips(judgements: list[Judgement]) -> dict[str, dict[str, float]]:
    """Annotator -> dimension -> share of the pairs judged in both orders whose verdicts differ."""
    by_order = {(row.annotator, row.pair, row.order): row for row in judgements}
    both: dict[str, list[tuple[Judgement, Judgement]]] = {}
    for (name, pair, order), row in by_order.items():
        if order == "ab" and (other := by_order.get((name, pair, "ba"))):
            both.setdefault(name, []).append((row, other))
    return {
        annotator: {name: sum(a.named[name] != b.named[name] for a, b in both[annotator]) / len(both[annotator]) for name in ASPECTS}
        for annotator in sorted(both)
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
