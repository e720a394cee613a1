"""Statistics of paired comparisons with ties: tests and intervals by rater, Bradley-Terry and Davidson, Krippendorff's alpha, power.

Votes enter as counts: for each pair of methods (i, j) the wins of i, the ties, and the wins of j, an array (pairs, 3); by rater one such
array a rater, (raters, pairs, 3), or (raters, 3) for a single pair. Pairs are listed as in `pairs_of`. Raters are the units: votes of one
rater hang together, so tests and intervals ask what other raters would say, not what the same raters would say again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import krippendorff
import numpy as np
import torch
from scipy import stats
from scipy.optimize import minimize
from scipy.sparse.csgraph import connected_components

from portraitkit.stats import ALPHA, sign_flip_test, wilson_interval

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
    """A fitted Davidson model."""

    strengths: tuple[float, ...]  # natural-log worth of each method, mean 0; P(i beats j | no tie) = 1 / (1 + exp(s_j - s_i))
    tie: float  # log of Davidson's nu; a tie between equals has probability nu / (2 + nu)
    low: tuple[float, ...]  # lower ends of the bootstrap intervals of the strengths, resampling raters; NaN where there are too few
    high: tuple[float, ...]  # upper ends
    first: tuple[float, ...]  # share of the bootstrap draws in which each method is the strongest


def pairs_of(count: int) -> list[tuple[int, int]]:
    """All pairs of `count` methods, the lower index first, in lexical order."""
    return list(combinations(range(count), 2))


def win_rate(counts: Sequence[float]) -> Estimate:
    """Share of (wins, ties, losses) for the first of a pair, a tie counted as half, with Wilson's interval as if votes were independent."""
    wins, votes = counts[0] + counts[1] / 2, sum(counts)
    return Estimate(wins / votes if votes else math.nan, *wilson_interval(wins, votes))


def win_rate_by_rater(by_rater: np.ndarray) -> Estimate:
    """The same share of votes (raters, 3) with an interval for other raters: Wilson's, of as many independent votes as these are worth.

    Votes are divided by `design_effect`, and further so that Wilson's normal quantile becomes Student's with one degree of freedom less
    than there are raters (Korn and Graubard 1998; Dean and Pagano 2015). A single rater tells nothing about others: [0, 1].
    """
    by_rater = by_rater[by_rater.sum(1) > 0]
    value = win_rate(by_rater.sum(0).tolist()).value
    if len(by_rater) < 2:
        return Estimate(value, 0.0, 1.0)
    wider = stats.t.ppf(1 - ALPHA / 2, len(by_rater) - 1) / stats.norm.ppf(1 - ALPHA / 2)
    votes = float(by_rater.sum() / design_effect(by_rater) / wider**2)
    return Estimate(value, *wilson_interval(value * votes, votes))


def design_effect(by_rater: np.ndarray) -> float:
    """How much one rater's votes, (raters, 3), hang together: variance of the win rate over that of independent votes, never below 1.

    The variance is that of a ratio of sums over raters (Cochran 1977, 6.4). Where it cannot be estimated, with one rater or all answers
    alike, each rater counts as one vote.
    """
    by_rater = by_rater[by_rater.sum(1) > 0]
    raters, votes = len(by_rater), by_rater.sum()
    if raters < 2 or (by_rater.sum(0) > 0).sum() < 2:
        return float(votes / raters) if raters else 1.0
    wins, by_each = by_rater[:, 0] + by_rater[:, 1] / 2, by_rater.sum(1)
    rate = wins.sum() / votes
    together = raters / (raters - 1) * ((wins - rate * by_each) ** 2).sum() / votes**2
    return max(1.0, float(together / (rate * (1 - rate) / votes)))


def preference_test(by_rater: np.ndarray, *, seed: int = 0) -> float:
    """Two-sided p that raters, (raters, 3), lean to neither method of a pair: the signs of their net preferences flipped at random.

    A rater's net preference is their wins minus losses. However strongly each rater leans, under the null hypothesis the opposite lean was
    as likely. Exact where raters are few; 1 without votes.
    """
    net = torch.from_numpy(by_rater[:, 0] - by_rater[:, 2]).double()
    return sign_flip_test(net, seed=seed) if len(net) else 1.0


def fewest_raters(tests: int) -> int:
    """Raters below which `preference_test` cannot tell anything apart at the 5 % level, with Holm's correction over `tests` pairs.

    The smallest p of n raters is 2 / 2**n: all of them lean to the same side.

    >>> fewest_raters(1), fewest_raters(3)
    (6, 7)
    """
    return math.floor(math.log2(tests / ALPHA)) + 2


def is_connected(counts: np.ndarray, methods: int) -> bool:
    """Whether votes link every method to every other one, so that one scale can hold them all. Counts are (pairs, 3)."""
    votes = np.zeros((methods, methods))
    votes[np.triu_indices(methods, 1)] = counts.sum(1)
    return connected_components(votes)[0] == 1


def bradley_terry(wins: np.ndarray, *, prior: float) -> np.ndarray:
    """Maximum a posteriori strengths (Bradley & Terry 1952) as log-odds, mean 0: P(i beats j) = sigmoid(s_i - s_j).

    `wins` are of the row over the column, (systems, systems), 0 on the diagonal; a tie enters as half a win for each. `prior` are wins and
    losses of every system against one of strength 0, so that one that always wins stays finite.
    """

    def loss(strengths: np.ndarray) -> float:
        lost = wins * np.logaddexp(0, strengths[None] - strengths[:, None])
        return float(lost.sum() + prior * np.logaddexp(0, [-strengths, strengths]).sum())

    fitted = minimize(loss, np.zeros(len(wins)), method="BFGS").x
    return fitted - fitted.mean()


def fit_davidson(counts: np.ndarray, methods: int) -> np.ndarray:
    """Bradley-Terry with ties (Davidson 1970) by Newton's method, for many count tables at once.

    Outcomes of a pair have the logits s_i, (s_i + s_j) / 2 + log nu, s_j: a conditional logit, concave in its parameters. Counts are wins
    of i, ties, wins of j: (draws, pairs, 3); strengths with mean 0, then log nu, are (draws, methods + 1).
    """
    pairs = pairs_of(methods)
    features = np.zeros((len(pairs), 3, methods + 1))
    for row, (i, j) in enumerate(pairs):
        features[row, 0, i] = features[row, 2, j] = 1
        features[row, 1, [i, j]] = 0.5
        features[row, 1, methods] = 1
    flat = features.reshape(-1, methods + 1)
    seen = counts.sum(2, keepdims=True) > 0
    counts = counts + VIRTUAL_VOTES * seen
    votes = counts.sum(2)
    ridge = np.eye(methods + 1) * 1e-9
    ridge[:methods, :methods] += 1e-3  # the mean of the strengths is free in the likelihood: pin it at 0
    parameters = np.zeros((len(counts), methods + 1))
    for _ in range(60):
        chance = np.exp(np.einsum("poc,dc->dpo", features, parameters))
        chance /= chance.sum(2, keepdims=True)
        gradient = np.einsum("dpo,poc->dc", counts - votes[..., None] * chance, features)
        mean = np.einsum("dpo,poc->dpc", chance, features)
        second = np.einsum("dpo,poc->dcpo", votes[..., None] * chance, features).reshape(*gradient.shape, -1) @ flat
        second -= (votes[..., None] * mean).swapaxes(1, 2) @ mean
        step = np.linalg.solve(second + ridge, gradient[..., None])[..., 0]
        size = np.abs(step).max(1, keepdims=True)
        parameters = parameters + step / np.maximum(1, size)
        if size.max() < 1e-9:
            break
    parameters[:, :methods] -= parameters[:, :methods].mean(1, keepdims=True)
    return parameters


def strengths(by_rater: np.ndarray, methods: int, *, draws: int = 2000, seed: int = 0) -> Strengths:
    """Davidson strengths of (raters, pairs, 3) votes with percentile intervals, resampling whole raters; NaN below `fewest_raters(1)`.

    The percentiles lie further out the fewer raters there are, as Student's quantiles do (Hesterberg 2015, "expanded percentiles"): the
    plain ones are too narrow by sqrt((n - 1) / n), and by the normal quantile in place of Student's.
    """
    fitted, raters = fit_davidson(by_rater.sum(0)[None], methods)[0], len(by_rater)
    values, tie = tuple(fitted[:methods].tolist()), float(fitted[methods])
    if raters < fewest_raters(1):
        unknown = (math.nan,) * methods
        return Strengths(values, tie, unknown, unknown, unknown)
    drawn = np.random.default_rng(seed).multinomial(raters, np.full(raters, 1 / raters), size=draws)
    sampled = fit_davidson(np.einsum("dr,rpo->dpo", drawn, by_rater), methods)[:, :methods]
    tail = stats.norm.cdf(stats.t.ppf(ALPHA / 2, raters - 1) * math.sqrt(raters / (raters - 1)))
    low, high = np.quantile(sampled, [tail, 1 - tail], axis=0)
    first = np.bincount(sampled.argmax(1), minlength=methods) / draws
    return Strengths(values, tie, tuple(low.tolist()), tuple(high.tolist()), tuple(first.tolist()))


def ordinal_alpha(units: np.ndarray) -> float:
    """Krippendorff's alpha on the ordinal scale first, tie, second (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"),
    of how many voted so for each compared pair, (units, 3). NaN where no unit has two votes or all votes are alike."""
    units = units[units.sum(1) >= 2]
    if not len(units) or (units.sum(0) > 0).sum() < 2:
        return math.nan
    return float(krippendorff.alpha(value_counts=units, level_of_measurement="ordinal"))


def alpha_interval(units: np.ndarray, *, draws: int = 500, seed: int = 0) -> Estimate:
    """Alpha with a percentile interval, resampling units."""
    units = units[units.sum(1) >= 2]
    value = ordinal_alpha(units)
    if not math.isfinite(value):
        return Estimate(value, math.nan, math.nan)
    index = np.random.default_rng(seed).integers(len(units), size=(draws, len(units)))
    sampled = np.array([ordinal_alpha(units[row]) for row in index])
    low, high = np.nanquantile(sampled, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def position_bias(by_rater: np.ndarray, *, seed: int = 0) -> tuple[Estimate, float]:
    """Share of decisive votes for the left picture with its interval by rater, and the p value of no lean to either side; votes are for
    the left picture, ties, for the right one: (raters, 3)."""
    decisive = by_rater * np.array([1, 0, 1])
    return win_rate_by_rater(decisive), preference_test(decisive, seed=seed)


def votes_needed(rate: float, *, design_effect: float = 1.0) -> int:
    """Votes on a pair for a two-sided test at the 5 % level to find a true win rate, any but one half, with probability .8. `design_effect`
    is the variance of the win rate over that of independent votes.

    >>> votes_needed(0.6)
    194
    """
    z_alpha, z_beta = stats.norm.ppf(1 - ALPHA / 2), stats.norm.ppf(0.8)
    root = (z_alpha * 0.5 + z_beta * math.sqrt(rate * (1 - rate))) / abs(rate - 0.5)
    return math.ceil(root * root * design_effect)


def detectable_rate(votes: int, *, design_effect: float = 1.0) -> float:
    """The smallest win rate above one half that `votes` votes find with probability .8; NaN where even 99.9 % is not."""
    low, high = 0.5, 0.999
    if votes_needed(high, design_effect=design_effect) > votes:
        return math.nan
    for _ in range(50):
        middle = (low + high) / 2
        enough = votes_needed(middle, design_effect=design_effect) <= votes
        low, high = (low, middle) if enough else (middle, high)
    return high
