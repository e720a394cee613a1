"""How far annotators agree, and which system wins: Krippendorff's alpha, shares of equal verdicts, Bradley-Terry scores."""

from dataclasses import dataclass

import numpy as np

from portraitkit import votes
from preference_data.schema import DIMENSIONS
from preference_data.verdict import Verdict

SCALE: tuple[Verdict, ...] = ("b", "tie", "a")
Judgements = dict[str, dict[str, dict[str, Verdict]]]
"""annotator -> pair id -> dimension (and "overall") -> verdict."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of several annotators on one dimension.

    Attributes:
        alpha: Krippendorff's alpha of the verdicts on the ordinal scale b, tie, a; None where it is not defined (fewer than two
            annotators in common, or one verdict everywhere).
        equal: share of equal verdicts among all pairs of annotators of the same pair; None where nobody shares a pair.
        pairs: how many pairs have at least two verdicts.
    """

    alpha: float | None
    equal: float | None
    pairs: int


def agreement(judgements: Judgements) -> dict[str, Agreement]:
    """Agreement on each of the five dimensions and overall."""
    ids = sorted({pair for rows in judgements.values() for pair in rows})
    result = {}
    for dimension in (*DIMENSIONS, "overall"):
        verdicts = [[rows[pair][dimension] for rows in judgements.values() if dimension in rows.get(pair, {})] for pair in ids]
        counts = np.array([[values.count(verdict) for verdict in SCALE] for values in verdicts], int).reshape(len(ids), len(SCALE))
        counts = counts[counts.sum(1) >= 2]
        alpha = votes.ordinal_alpha(counts)
        seen = counts.sum(1)
        equal = (counts * (counts - 1)).sum(1) / (seen * (seen - 1))
        result[dimension] = Agreement(alpha if np.isfinite(alpha) else None, float(equal.mean()) if len(equal) else None, len(counts))
    return result


def bradley_terry(duels: list[tuple[str, str, Verdict]], *, prior: float = 0.5) -> dict[str, float]:
    """Strengths of systems from duels; a tie is half a win for each.

    Args:
        duels: system of a, system of b, verdict. Duels of a system with itself count for nothing.
        prior: see `portraitkit.votes.bradley_terry`.

    Returns:
        System -> log-odds strength, mean 0: P(x beats y) = sigmoid(strength of x - strength of y).
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
