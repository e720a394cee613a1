"""Whether a difference is more than chance: the sign-flip test, Holm's correction, and how many photos the two need together."""

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

LEVEL = 0.05
"""A difference counts as found where its corrected p is below."""
DRAWS = 10_000
EXACT = 32
"""Pairs up to which every sign pattern is counted: the sums of either half are 2^16."""
ROUNDING = 1e-12


def sign_flip_test(differences: Float[Tensor, " n"], *, draws: int = DRAWS, seed: int = 0) -> float:
    """Two-sided p of the mean of paired differences under random signs (Fisher 1935); NaN for none.

    Up to 32 pairs that differ it is exact. Beyond, it is estimated to some percent of itself, however small it is: no number of draws is
    its floor, so that a correction over thousands of comparisons leaves something to find.

    Args:
        differences: of the pairs; those that are not finite are left out.
        draws: beyond 32 pairs.
        seed: of the draws.
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
    halves = [torch.zeros(1, dtype=torch.float64)] * 2
    for place, size in enumerate(sizes):
        sums = halves[place % 2]
        halves[place % 2] = torch.cat([sums - size, sums + size])
    one, other = halves[0].sort().values, halves[1].sort().values
    reached = len(one) - torch.searchsorted(one, least - other)
    return 2 * int(reached.sum()) / 2 ** len(sizes)


def _estimate(sizes: Float[Tensor, " k"], least: float, draws: int, seed: int) -> float:
    """The same share by importance sampling (Siegmund 1976): the observed sum is the expected one of what is drawn.

    The observed pattern counts as one of the draws, as in a plain permutation test.
    """
    total = float(sizes.sum())
    if least >= total * (1 - 2 * ROUNDING):  # all signs are equal
        return 2.0 ** (1 - len(sizes))
    low, high = 0.0, 1.0
    while float((sizes * (high * sizes).tanh()).sum()) < least and high < 1e9:
        low, high = high, 2 * high
    for _ in range(60):
        tilt = (low + high) / 2
        low, high = (tilt, high) if float((sizes * (tilt * sizes).tanh()).sum()) < least else (low, tilt)
    tilt = (low + high) / 2
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


def too_few(photos: int, comparisons: int) -> str:
    """One line where no difference could be found, however large, since the least p of so many photos does not pass Holm; else empty.

    >>> too_few(14, 136), too_few(15, 544)
    ('', '')

    Args:
        photos: of the comparison that has most.
        comparisons: that are corrected for together.
    """
    if comparisons == 0 or _least_p(photos) * comparisons < LEVEL:
        return ""
    needed = next(count for count in itertools.count(1) if _least_p(count) * comparisons < LEVEL)
    compared = f"{comparisons} comparisons" if comparisons > 1 else "1 comparison"
    return (
        f"no difference can be found with {photos} photo{'s' if photos > 1 else ''}, however large: their least p is "
        f"{_least_p(photos):.2g}, and {compared} by Holm need one below {LEVEL / comparisons:.2g}; "
        f"give {needed} photos or more, or fewer methods or metrics"
    )


def _least_p(photos: int) -> float:
    """Of the sign-flip test where all differences point the same way."""
    return 2.0 ** (1 - photos)
