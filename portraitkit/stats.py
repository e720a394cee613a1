"""How sure: bootstrap intervals of means, Wilson's of shares, rank correlation, the sign-flip test and Holm's correction.

Means are resampled by torch's random numbers and sign patterns are counted or sampled here: `scipy.stats.bootstrap` would change every
interval by its own draws, and `scipy.stats.permutation_test` neither counts 2^32 patterns nor goes below one over its draws.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

ALPHA = 0.05  # A difference counts as real where its corrected p is below
DRAWS = 10_000
EXACT = 32  # Pairs up to which every sign pattern is counted: the sums of either half are 2^16
LEAST_PEOPLE = 6
"""People from which on a change gets an interval and a verdict: five that all change the same way have p = .06 by the sign-flip test."""
ROUNDING = 1e-12


@dataclass(frozen=True)
class Change:
    """Means before and after on the same photos; `ci95` is the bootstrap interval of the gain, `people` how many it is over."""

    before: float
    after: float
    gain: float
    ci95: tuple[float, float]
    people: int


def bootstrap_interval(values: Float[Tensor, " n"], *, draws: int = DRAWS, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979), resampling whole photos; NaN values are left out."""
    values = values[values.isfinite()].double()
    if len(values) == 0:
        return float("nan"), float("nan")
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(values), (draws, len(values)), generator=generator)
    return _percentiles(values[index].mean(1), level)


def _percentiles(means: Float[Tensor, " draws"], level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=means.dtype)).tolist()
    return low, high


def paired_change(before: Float[Tensor, " n"], after: Float[Tensor, " n"], people: Sequence[Hashable] | None = None) -> Change:
    """Means and the interval of the paired difference over the photos where both are known. The `people` in them are resampled, and
    fewer than `LEAST_PEOPLE` have no interval (NaN). Without, photos are."""
    both = before.isfinite() & after.isfinite()
    before, after = before[both], after[both]
    gain = after - before
    known = None if people is None else [person for person, known in zip(people, both.tolist(), strict=True) if known]
    ends = bootstrap_interval(gain) if known is None else person_interval(gain, known)
    return Change(float(before.mean()), float(after.mean()), float(gain.mean()), ends, len(gain if known is None else set(known)))


def person_interval(values: Float[Tensor, " n"], people: Sequence[Hashable], *, draws: int = DRAWS) -> tuple[float, float]:
    """`cluster_interval` over people; NaN where fewer than `LEAST_PEOPLE` have a value."""
    known = {person for person, value in zip(people, values.tolist(), strict=True) if math.isfinite(value)}
    return cluster_interval(values, people, draws=draws) if len(known) >= LEAST_PEOPLE else (math.nan, math.nan)


def mean_by(values: Float[Tensor, " n"], keys: Sequence[Hashable]) -> Float[Tensor, " k"]:
    """Mean of the finite values of each key, keys in the order in which they first come; NaN where a key has none."""
    sums, counts = _sums_by(values, keys)
    return (sums / counts).to(values.dtype)  # 0 / 0 is NaN


def _sums_by(values: Float[Tensor, " n"], keys: Sequence[Hashable]) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """Sum and number of the finite values of each key."""
    places = {name: place for place, name in enumerate(dict.fromkeys(keys))}
    at = torch.tensor([places[name] for name in keys], dtype=torch.long)
    finite = values.isfinite()
    zeros = torch.zeros(len(places), dtype=torch.float64)
    sums = zeros.index_add(0, at[finite], values[finite].double())
    return sums, zeros.index_add(0, at[finite], torch.ones(int(finite.sum()), dtype=torch.float64))


def cluster_interval(values: Float[Tensor, " n"], clusters: Sequence[Hashable], *, draws: int = DRAWS) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, resampling whole clusters (all rows of one person); NaN values are left out."""
    sums, counts = _sums_by(values, clusters)
    sums, counts = sums[counts > 0], counts[counts > 0]
    if len(counts) == 0:
        return float("nan"), float("nan")
    index = torch.randint(len(counts), (draws, len(counts)), generator=torch.Generator().manual_seed(0))
    return _percentiles(sums[index].sum(1) / counts[index].sum(1), 0.95)


def wilson_interval(wins: float, votes: float, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927) in [0, 1], all of it without votes.

    A tie may count as half a win, which `scipy.stats.binomtest` does not take.

    >>> [round(end, 3) for end in wilson_interval(8, 10)]
    [0.49, 0.943]
    """
    if votes <= 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = wins / votes
    middle = (share + z * z / (2 * votes)) / (1 + z * z / votes)
    half = z / (1 + z * z / votes) * math.sqrt(share * (1 - share) / votes + z * z / (4 * votes * votes))
    return max(0.0, middle - half), min(1.0, middle + half)


def rank_correlation(first: Float[Tensor, " n"], second: Float[Tensor, " n"]) -> float:
    """Spearman's rank correlation in [-1, 1] of the places where both are finite, ties at their mean rank; NaN where one does not vary."""
    import numpy as np
    from scipy.stats import rankdata  # half a second, and most commands do not need it

    both = first.isfinite() & second.isfinite()
    if not both.any():
        return math.nan
    ranks = [rankdata(values[both].numpy(force=True)) for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1]) if all(rank.std() > 0 for rank in ranks) else math.nan


@dataclass(frozen=True)
class GroupRank:
    """How far one score ranks the members of a group as another does: mean of the groups' Spearman correlations, in [-1, 1], NaN for no
    group; `ci95` is its bootstrap interval over groups, NaN below `LEAST_PEOPLE` of them."""

    rank: float
    ci95: tuple[float, float]
    groups: int

    def __str__(self) -> str:
        sure = f", 95 % interval {self.ci95[0]:.2f} to {self.ci95[1]:.2f}" if self.groups >= LEAST_PEOPLE else ""
        return f"{self.rank:.2f} ({self.groups} groups{sure})"


def ranks_in_groups(scores: Float[Tensor, " n"], truth: Float[Tensor, " n"], groups: Sequence[Hashable]) -> list[float]:
    """`rank_correlation` inside each group whose truth varies: 0 where the scores do not, which then say nothing about it."""
    found = []
    for group in dict.fromkeys(groups):
        rows = torch.tensor([other == group for other in groups]) & scores.isfinite() & truth.isfinite()
        if len(truth[rows].unique()) > 1:
            rank = rank_correlation(scores[rows], truth[rows])
            found.append(rank if math.isfinite(rank) else 0.0)
    return found


def group_rank(ranks: Sequence[float]) -> GroupRank:
    """The mean of `ranks_in_groups`."""
    values = torch.tensor(ranks, dtype=torch.float64)
    ends = bootstrap_interval(values) if len(ranks) >= LEAST_PEOPLE else (math.nan, math.nan)
    return GroupRank(float(values.mean()), ends, len(ranks))


def sign_flip_test(differences: Float[Tensor, " n"], *, draws: int = DRAWS, seed: int = 0) -> float:
    """Two-sided p of the mean of paired differences, those that are finite, under random signs (Fisher 1935); NaN for none.

    Up to 32 pairs that differ it is exact. Beyond, it is estimated from `draws` within a few percent of its value, however small that is,
    so that it can pass a correction over thousands of comparisons.
    """
    values = differences[differences.isfinite()].double()
    if len(values) == 0:
        return math.nan
    sizes = values[values != 0].abs()
    least = abs(float(values.sum())) - ROUNDING * float(sizes.sum())
    if least <= 0:
        return 1.0
    if len(sizes) <= EXACT:
        return _count(sizes, least)
    return min(1.0, _estimate(sizes / sizes.max(), least / float(sizes.max()), draws, seed))


def _count(sizes: Float[Tensor, " k"], least: float) -> float:
    """Share of the sign patterns whose sum is `least` or further out: the sums of one half are looked up among those of the other."""
    one = other = torch.zeros(1, dtype=torch.float64)
    for size in sizes:
        one, other = other, torch.cat([one - size, one + size])
    reached = len(one) - torch.searchsorted(one.sort().values, least - other)
    return 2 * int(reached.sum()) / 2 ** len(sizes)


def _estimate(sizes: Float[Tensor, " k"], least: float, draws: int, seed: int) -> float:
    """The same share by importance sampling (Siegmund 1976): the observed sum is the expected one of what is drawn.

    The observed pattern counts as one of the draws, as in a plain permutation test.
    """
    total = float(sizes.sum())
    if least >= total * (1 - 2 * ROUNDING):  # all signs are equal
        return 2.0 ** (1 - len(sizes))
    low, tilt = 0.0, 1e9
    for _ in range(90):
        middle = (low + tilt) / 2
        low, tilt = (middle, tilt) if float((sizes * (middle * sizes).tanh()).sum()) < least else (low, middle)
    logarithm = float((tilt * sizes + torch.log1p((-2 * tilt * sizes).exp()) - math.log(2)).sum())  # of the product of cosh
    positive = torch.sigmoid(2 * tilt * sizes).float()
    generator = torch.Generator().manual_seed(seed)
    chunk, left, share = max(1, 2_000_000 // len(sizes)), draws, math.exp(logarithm - tilt * least)
    while left:
        count = min(chunk, left)
        sums = 2 * ((torch.rand(count, len(sizes), generator=generator) < positive).double() @ sizes) - total
        share += float((logarithm - tilt * sums[sums >= least]).exp().sum())
        left -= count
    return 2 * share / (draws + 1)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979); NaN stays NaN and does not count."""
    order = sorted((value, place) for place, value in enumerate(p) if math.isfinite(value))
    out, running = [math.nan] * len(p), 0.0
    for rank, (value, place) in enumerate(order):
        running = max(running, min(1.0, value * (len(order) - rank)))
        out[place] = running
    return out


def least_p(pairs: int) -> float:
    """The smallest p that `sign_flip_test` can give: all differences point the same way."""
    return 2.0 ** (1 - pairs)
