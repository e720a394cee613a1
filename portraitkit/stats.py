"""How sure: bootstrap intervals of means and paired differences, over rows or clusters; Wilson's of shares."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Change:
    """Means before and after on the same photos; `ci95` is the bootstrap interval of the gain."""

    before: float
    after: float
    gain: float
    ci95: tuple[float, float]

    def to_dict(self) -> dict[str, object]:
        """JSON-able."""
        return asdict(self)


def bootstrap_interval(values: Float[Tensor, " n"], *, draws: int = 10_000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979), resampling whole photos; NaN values are left out."""
    values = values[values.isfinite()].double()
    if len(values) == 0:
        return float("nan"), float("nan")
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(values), (draws, len(values)), generator=generator)
    means = values[index].mean(1)
    tail = (1 - level) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=means.dtype)).tolist()
    return low, high


def paired_change(before: Float[Tensor, " n"], after: Float[Tensor, " n"]) -> Change:
    """Means and the interval of the paired difference over the photos where both are known."""
    both = before.isfinite() & after.isfinite()
    before, after = before[both], after[both]
    gain = after - before
    return Change(float(before.mean()), float(after.mean()), float(gain.mean()), bootstrap_interval(gain))


def rank_correlation(first: Float[Tensor, " n"], second: Float[Tensor, " n"]) -> float:
    """Spearman's rank correlation in [-1, 1] of the places where both are finite, ties at their mean rank; NaN where one does not vary."""
    both = first.isfinite() & second.isfinite()
    centred = [_ranks(values[both]) for values in (first, second)]
    scale = centred[0].norm() * centred[1].norm()
    return float((centred[0] * centred[1]).sum() / scale) if float(scale) > 0 else float("nan")


def _ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Mean ranks, centred on 0."""
    below = (values[:, None] > values).sum(1) - (values[:, None] < values).sum(1)
    return below.double() / 2


def cluster_interval(
    values: Float[Tensor, " n"], clusters: Sequence[Hashable], *, draws: int = 10_000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, resampling whole clusters (all rows of one person); NaN values are left out.

    Args:
        values: one a row.
        clusters: whose row it is.
        draws: bootstrap samples.
        seed: of the draws.
        level: of the interval.
    """
    places = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    at = torch.tensor([places[name] for name in clusters], dtype=torch.long)
    known = values.isfinite()
    sums = torch.zeros(len(places), dtype=torch.float64).index_add_(0, at[known], values[known].double())
    counts = torch.zeros(len(places), dtype=torch.float64).index_add_(0, at[known], torch.ones(int(known.sum()), dtype=torch.float64))
    sums, counts = sums[counts > 0], counts[counts > 0]
    if len(counts) == 0:
        return float("nan"), float("nan")
    index = torch.randint(len(counts), (draws, len(counts)), generator=torch.Generator().manual_seed(seed))
    means = sums[index].sum(1) / counts[index].sum(1)
    tail = (1 - level) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=means.dtype)).tolist()
    return low, high


def wilson_interval(wins: float, votes: float, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927) in [0, 1], all of it without votes; a tie may count as half a win.

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
