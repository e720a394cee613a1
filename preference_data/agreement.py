"""How far annotators agree, and which system wins: Krippendorff's alpha, shares of equal verdicts, Bradley-Terry scores."""

from collections import defaultdict
from dataclasses import dataclass

import krippendorff
import numpy as np
from scipy.optimize import minimize

from preference_data.schema import DIMENSIONS, Verdict

VALUES = {"a": 1.0, "tie": 0.0, "b": -1.0}
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
    """Agreement on each of the five dimensions and overall (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability")."""
    ids = sorted({pair for rows in judgements.values() for pair in rows})
    result = {}
    for dimension in (*DIMENSIONS, "overall"):
        table = np.array(
            [[VALUES[rows[pair][dimension]] if dimension in rows.get(pair, {}) else np.nan for pair in ids] for rows in judgements.values()]
        ).reshape(len(judgements), len(ids))
        shared = (~np.isnan(table)).sum(0) >= 2
        seen = table[:, shared]
        known = seen[~np.isnan(seen)]
        alpha = None
        if shared.any() and len(np.unique(known)) > 1:
            alpha = float(krippendorff.alpha(reliability_data=seen, level_of_measurement="ordinal"))
        equal = []
        for column in seen.T:
            values = column[~np.isnan(column)]
            count = len(values) * (len(values) - 1) / 2
            equal.append(sum(values[i] == values[j] for i in range(len(values)) for j in range(i)) / count)
        result[dimension] = Agreement(alpha, float(np.mean(equal)) if equal else None, int(shared.sum()))
    return result


def bradley_terry(duels: list[tuple[str, str, Verdict]], *, prior: float = 0.5) -> dict[str, float]:
    """Strengths of systems from duels (Bradley & Terry 1952); a tie is half a win for each.

    Args:
        duels: system of a, system of b, verdict. Duels of a system with itself count for nothing.
        prior: wins and losses that every system is given against a system of strength 0, so that one that always wins stays finite.

    Returns:
        System -> log-odds strength, mean 0: P(x beats y) = sigmoid(strength of x - strength of y).
    """
    wins: dict[tuple[str, str], float] = defaultdict(float)
    for a, b, verdict in duels:
        if a != b:
            wins[a, b] += {"a": 1.0, "tie": 0.5, "b": 0.0}[verdict]
            wins[b, a] += {"a": 0.0, "tie": 0.5, "b": 1.0}[verdict]
    names = sorted({name for pair in wins for name in pair})
    if not names:
        return {}
    index = {name: row for row, name in enumerate(names)}
    table = np.zeros((len(names), len(names)))
    for (a, b), count in wins.items():
        table[index[a], index[b]] = count

    def loss(strength: np.ndarray) -> tuple[float, np.ndarray]:
        gap = strength[:, None] - strength[None]
        value = (table * np.logaddexp(0, -gap)).sum() + prior * (np.logaddexp(0, -strength) + np.logaddexp(0, strength)).sum()
        lost = table / (1 + np.exp(gap))
        gradient = lost.sum(0) - lost.sum(1) + prior * (1 / (1 + np.exp(-strength)) - 1 / (1 + np.exp(strength)))
        return float(value), gradient

    found = minimize(loss, np.zeros(len(names)), jac=True, method="L-BFGS-B").x
    return dict(zip(names, (found - found.mean()).tolist(), strict=True))
