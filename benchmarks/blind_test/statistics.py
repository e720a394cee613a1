"""Statistics of paired comparisons with ties: Wilson intervals, the Davidson model, agreement, position bias, power.

Votes enter as counts: for each pair of methods (i, j) the wins of i, the ties, and the wins of j, an array (pairs, 3); for the
bootstrap by rater one such array a rater, (raters, pairs, 3). Pairs are listed as in `pairs_of`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import krippendorff
import numpy as np
from scipy import stats

from portraitkit.statistics import wilson_interval

VIRTUAL_VOTES = 0.1
"""Added to each of the three outcomes of every pair that was compared: keeps the estimates finite where a method never loses."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Strengths:
    """A fitted Davidson model.

    Attributes:
        strengths: natural-log worth of each method, mean 0; P(i beats j | no tie) = 1 / (1 + exp(s_j - s_i)).
        tie: log of Davidson's nu; a tie between equals has probability nu / (2 + nu).
        low: lower ends of the bootstrap intervals of the strengths, resampling raters.
        high: upper ends.
        first: share of the bootstrap draws in which each method is the strongest.
    """

    strengths: tuple[float, ...]
    tie: float
    low: tuple[float, ...]
    high: tuple[float, ...]
    first: tuple[float, ...]


def pairs_of(count: int) -> list[tuple[int, int]]:
    """All pairs of `count` methods, the lower index first, in lexical order."""
    return list(combinations(range(count), 2))


def win_rate(counts: Sequence[float]) -> Estimate:
    """Share of votes for the first method of a pair, a tie counted as half, with Wilson's interval.

    Args:
        counts: wins of the first, ties, wins of the second.
    """
    votes = float(sum(counts))
    wins = float(counts[0] + counts[1] / 2)
    return Estimate(wins / votes if votes else math.nan, *wilson_interval(wins, votes))


def sign_test(first: int, second: int) -> float:
    """Exact two-sided p value that both are preferred equally often; ties are left out."""
    return float(stats.binomtest(first, first + second).pvalue) if first + second else 1.0


def holm(values: Sequence[float]) -> list[float]:
    """Holm's correction of p values (Holm 1979).

    >>> [round(value, 3) for value in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    out, worst = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        worst = max(worst, min(1.0, (len(values) - rank) * values[index]))
        out[index] = worst
    return out


def is_connected(counts: np.ndarray, methods: int) -> bool:
    """Whether votes link every method to every other one, so that one scale can hold them all. Counts are (pairs, 3)."""
    reached, grown = {0}, True
    while grown:
        before = len(reached)
        for (i, j), votes in zip(pairs_of(methods), counts.sum(1), strict=True):
            if votes > 0 and (i in reached or j in reached):
                reached |= {i, j}
        grown = len(reached) > before
    return len(reached) == methods


def fit_davidson(counts: np.ndarray, methods: int, *, steps: int = 60) -> np.ndarray:
    """Bradley-Terry with ties (Davidson 1970) by Newton's method, for many count tables at once.

    Outcomes of a pair have the logits s_i, (s_i + s_j) / 2 + log nu, s_j: a conditional logit, concave in its parameters.

    Args:
        counts: wins of i, ties, wins of j: (draws, pairs, 3).
        methods: how many.
        steps: most Newton steps.

    Returns:
        (draws, methods + 1): strengths with mean 0, then log nu.
    """
    pairs = pairs_of(methods)
    features = np.zeros((len(pairs), 3, methods + 1))
    for row, (i, j) in enumerate(pairs):
        features[row, 0, i] = features[row, 2, j] = 1
        features[row, 1, [i, j]] = 0.5
        features[row, 1, methods] = 1
    seen = counts.sum(2, keepdims=True) > 0
    counts = counts + VIRTUAL_VOTES * seen
    votes = counts.sum(2)
    ridge = np.eye(methods + 1) * 1e-9
    ridge[:methods, :methods] += 1e-3  # the mean of the strengths is free in the likelihood: pin it at 0
    parameters = np.zeros((len(counts), methods + 1))
    for _ in range(steps):
        logits = np.einsum("poc,dc->dpo", features, parameters)
        chance = np.exp(logits - logits.max(2, keepdims=True))
        chance /= chance.sum(2, keepdims=True)
        gradient = np.einsum("dpo,poc->dc", counts - votes[..., None] * chance, features) - parameters @ ridge
        mean = np.einsum("dpo,poc->dpc", chance, features)
        second = np.einsum("dp,dpo,poc,poe->dce", votes, chance, features, features, optimize=True)
        second -= np.einsum("dp,dpc,dpe->dce", votes, mean, mean, optimize=True)
        step = np.linalg.solve(second + ridge, gradient[..., None])[..., 0]
        size = np.abs(step).max(1, keepdims=True)
        parameters = parameters + step * np.minimum(1, 1 / np.maximum(size, 1e-12))
        if size.max() < 1e-9:
            break
    parameters[:, :methods] -= parameters[:, :methods].mean(1, keepdims=True)
    return parameters


def rater_draws(by_rater: np.ndarray, *, draws: int, seed: int) -> np.ndarray:
    """Bootstrap by rater: tables of counts (draws, pairs, 3) from raters drawn with replacement out of (raters, pairs, 3)."""
    raters = len(by_rater)
    weights = np.random.default_rng(seed).multinomial(raters, np.full(raters, 1 / raters), size=draws)
    return np.einsum("dr,rpo->dpo", weights, by_rater)


def strengths(by_rater: np.ndarray, methods: int, *, draws: int = 2000, seed: int = 0) -> Strengths:
    """Davidson strengths with percentile intervals, resampling whole raters. `by_rater` is (raters, pairs, 3)."""
    fitted = fit_davidson(by_rater.sum(0)[None], methods)[0]
    sampled = fit_davidson(rater_draws(by_rater, draws=draws, seed=seed), methods)[:, :methods]
    low, high = np.quantile(sampled, [0.025, 0.975], axis=0)
    first = np.bincount(sampled.argmax(1), minlength=methods) / draws
    return Strengths(
        tuple(fitted[:methods].tolist()), float(fitted[methods]), tuple(low.tolist()), tuple(high.tolist()), tuple(first.tolist())
    )


def agreement(units: np.ndarray) -> float:
    """Krippendorff's alpha, ordinal; NaN where no unit has two votes or all votes are alike.

    Args:
        units: for each photo and pair, how many voted first, tie, second: (units, 3).
    """
    units = units[units.sum(1) >= 2]
    if not len(units) or (units.sum(0) > 0).sum() < 2:
        return math.nan
    return float(krippendorff.alpha(value_counts=units, level_of_measurement="ordinal"))


def agreement_interval(units: np.ndarray, *, draws: int = 500, seed: int = 0) -> Estimate:
    """Alpha with a percentile interval, resampling units."""
    units = units[units.sum(1) >= 2]
    value = agreement(units)
    if not math.isfinite(value):
        return Estimate(value, math.nan, math.nan)
    index = np.random.default_rng(seed).integers(len(units), size=(draws, len(units)))
    sampled = np.array([agreement(units[row]) for row in index])
    low, high = np.nanquantile(sampled, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def position_bias(left: int, right: int) -> tuple[Estimate, float]:
    """Share of decisive votes for the left picture with Wilson's interval, and the exact p value against one half."""
    votes = left + right
    return Estimate(left / votes if votes else math.nan, *wilson_interval(left, votes)), sign_test(left, right)


def votes_needed(rate: float, *, alpha: float = 0.05, power: float = 0.8, design_effect: float = 1.0) -> int:
    """Votes on a pair for a two-sided test at level `alpha` to find a true win rate with probability `power`.

    Args:
        rate: true win rate, any but one half.
        alpha: level of the test.
        power: probability of finding it.
        design_effect: variance of the win rate over that of independent votes, see `design_effect`.

    >>> votes_needed(0.6)
    194
    """
    z_alpha, z_beta = stats.norm.ppf(1 - alpha / 2), stats.norm.ppf(power)
    root = (z_alpha * 0.5 + z_beta * math.sqrt(rate * (1 - rate))) / abs(rate - 0.5)
    return math.ceil(root * root * design_effect)


def detectable_rate(votes: int, *, alpha: float = 0.05, power: float = 0.8, design_effect: float = 1.0) -> float:
    """The smallest win rate above one half that `votes` votes find with probability `power`; NaN where even 99.9 % is not."""
    low, high = 0.5, 0.999
    if votes < 1 or votes_needed(high, alpha=alpha, power=power, design_effect=design_effect) > votes:
        return math.nan
    for _ in range(50):
        middle = (low + high) / 2
        enough = votes_needed(middle, alpha=alpha, power=power, design_effect=design_effect) <= votes
        low, high = (low, middle) if enough else (middle, high)
    return high


def design_effect(by_rater: np.ndarray, *, draws: int = 2000, seed: int = 0) -> float:
    """How much wider one rater's votes hanging together make the interval of a win rate, never below 1.

    Args:
        by_rater: votes on one pair, (raters, 3).
        draws: bootstrap draws.
        seed: of the draws.

    Returns:
        Variance of the win rate over resampled raters, divided by its variance if all votes were independent.
    """
    by_rater = by_rater[by_rater.sum(1) > 0]
    total = by_rater.sum(0).astype(float)
    votes = total.sum()
    if len(by_rater) < 2 or (total > 0).sum() < 2:
        return 1.0
    rate = (total[0] + total[1] / 2) / votes
    alone = ((total[0] + total[1] / 4) / votes - rate**2) / votes
    sampled = rater_draws(by_rater[:, None], draws=draws, seed=seed)[:, 0]
    rates = (sampled[:, 0] + sampled[:, 1] / 2) / sampled.sum(1)
    return max(1.0, float(rates.var() / alone))
