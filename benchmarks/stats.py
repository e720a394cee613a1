"""How sure: intervals, paired differences, win rates, groups, how far metrics agree with each other and with preferences.

Pictures are the units everywhere: what is compared between methods is compared photo by photo, on the photos that both have a value of.
"""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.metric import Metric
from benchmarks.suite import Results
from portraitkit.errors import DataError
from portraitkit.files.jsonl import read_objects
from portraitkit.stats import ALPHA, bootstrap_interval, holm, least_p, rank_correlation, sign_flip_test, wilson_interval

Interval = tuple[float, float]
ROUNDING = 5e-6  # Half an interval, or a standard deviation, below which values differ by rounding only: it counts as 0
LEAST_EFFECT = 0.1  # Standard deviations over photos from which on a difference that is sure counts as better or worse


@dataclass(frozen=True)
class Mean:
    """Mean of a metric over a method's pictures; `n` have a value, `missing` have none. A set metric and one picture have no interval."""

    method: str
    metric: str
    mean: float
    ci95: Interval
    n: int
    missing: int


@dataclass(frozen=True)
class Comparison:
    """A method against another on the same photos."""

    metric: str  # measured
    before: str  # the one
    after: str  # the other
    n: int  # photos that both have a value of
    gain: float  # mean of after minus before, whatever the direction
    ci95: Interval  # bootstrap interval of the gain
    better: bool  # whether the gain points to the better side
    p: float  # of the sign-flip permutation test of the paired differences, two-sided
    p_holm: float  # with Holm's correction over all comparisons of the run
    wins: float  # share of photos on which `after` is better; ties count half
    wins_ci95: Interval  # Wilson's interval of it
    ties: int  # photos with equal values
    effect: float  # size of the gain in standard deviations that photos have under `before`, infinite where they have none

    @property
    def verdict(self) -> Literal["better", "worse", "undecided"]:
        """Better and worse are sure, after Holm's correction, and large enough to matter."""
        if not (self.p_holm < ALPHA and self.effect >= LEAST_EFFECT):
            return "undecided"
        return "better" if self.better else "worse"


def interval(values: Float[Tensor, " n"], seed: int = 0) -> Interval:
    """`bootstrap_interval` with as many draws as keep its memory flat: 10 000 up to 500 values, 1000 from 5000.

    NaN below two values: one photo says nothing about how far photos scatter.
    """
    if len(values) < 2:
        return math.nan, math.nan
    draws = max(1000, min(10_000, 5_000_000 // len(values)))
    return bootstrap_interval(values, draws=draws, seed=seed)


@dataclass(frozen=True)
class Grid:
    """Values by photo and method."""

    names: list[str]  # photos
    methods: list[str]  # in the run's order
    values: Mapping[str, Float[Tensor, "names methods"]]  # metric -> value, NaN where there is none


def grid(results: Results) -> Grid:
    """The run's values by photo and method."""
    inputs = results.inputs
    names = sorted({item.name for item in inputs.items})
    row, column = {name: i for i, name in enumerate(names)}, {method: i for i, method in enumerate(inputs.methods)}
    rows = torch.tensor([row[item.name] for item in inputs.items])
    columns = torch.tensor([column[item.method] for item in inputs.items])
    tables = {}
    for metric, values in results.values.items():
        tables[metric] = torch.full((len(names), len(inputs.methods)), math.nan, dtype=torch.float64)
        tables[metric][rows, columns] = values
    return Grid(names, inputs.methods, tables)


def means(results: Results, table: Grid, seed: int = 0) -> list[Mean]:
    """Of every metric and method."""
    out = []
    for metric in results.metrics:
        for place, method in enumerate(table.methods):
            count = sum(item.method == method for item in results.inputs.items)
            if metric.name in results.pooled:
                value = results.pooled[metric.name].get(method, math.nan)
                out.append(Mean(method, metric.name, value, (math.nan, math.nan), count, 0))
            else:
                mean, bounds, known = _mean(table.values[metric.name][:, place], seed)
                out.append(Mean(method, metric.name, mean, bounds, known, count - known))
    return out


def _mean(values: Float[Tensor, " n"], seed: int) -> tuple[float, Interval, int]:
    """Mean, interval and number of the values that are finite."""
    values = values[values.isfinite()]
    return float(values.mean()) if len(values) else math.nan, interval(values, seed), len(values)


def comparisons(results: Results, table: Grid, seed: int = 0) -> list[Comparison]:
    """Every two methods by every metric, Holm's correction over all of them."""
    out: list[Comparison] = []
    for metric in results.metrics:
        if metric.name not in table.values:
            continue
        for one, other in itertools.combinations(range(len(table.methods)), 2):
            before, after = table.values[metric.name][:, one], table.values[metric.name][:, other]
            known = before.isfinite() & after.isfinite()
            difference = (after - before)[known]
            count = len(difference)
            if count == 0:
                continue
            gain = metric.sign * difference
            ties = int((gain == 0).sum())
            spread = float(before[known].std()) if count > 1 else math.nan
            wins = float((gain > 0).sum()) + ties / 2
            out.append(
                Comparison(
                    metric=metric.name,
                    before=table.methods[one],
                    after=table.methods[other],
                    n=count,
                    gain=float(difference.mean()),
                    ci95=interval(difference, seed),
                    better=float(gain.mean()) > 0,
                    effect=float(gain.mean().abs() / (0.0 if spread < ROUNDING else spread)),
                    p=sign_flip_test(difference, seed=seed),
                    p_holm=math.nan,
                    wins=wins / count,
                    wins_ci95=wilson_interval(wins, count),
                    ties=ties,
                )
            )
    return [replace(entry, p_holm=p) for entry, p in zip(out, holm([entry.p for entry in out]), strict=True)]


def too_few(photos: int, comparisons: int) -> str:
    """One line where no difference could be found, however large, since the least p of so many photos does not pass Holm; else empty.

    >>> too_few(14, 136), too_few(15, 544)
    ('', '')
    """
    if comparisons == 0 or least_p(photos) * comparisons < ALPHA:
        return ""
    needed = next(count for count in itertools.count(photos) if least_p(count) * comparisons < ALPHA)
    compared = f"{comparisons} comparisons" if comparisons > 1 else "1 comparison"
    return (
        f"no difference can be found with {photos} photo{'s' if photos > 1 else ''}, however large: their least p is "
        f"{least_p(photos):.2g}, and {compared} by Holm need one below {ALPHA / comparisons:.2g}; "
        f"give {needed} photos or more, or fewer methods or metrics"
    )


def group_tables(results: Results, table: Grid, seed: int = 0) -> list[dict[str, Any]]:
    """Means per group value, where metadata has groups; `worst` marks the group of two or more that fares worst with a method."""
    out: list[dict[str, Any]] = []
    groups_of = results.inputs.groups
    for group in sorted({group for groups in groups_of.values() for group in groups}):
        kinds = sorted({groups_of[name][group] for name in table.names if group in groups_of.get(name, {})})
        for metric in results.metrics:
            if metric.name not in table.values:
                continue
            for place, method in enumerate(table.methods):
                rows = []
                for kind in kinds:
                    mask = torch.tensor([groups_of.get(name, {}).get(group) == kind for name in table.names])
                    mean, bounds, known = _mean(table.values[metric.name][mask, place], seed)
                    if known:
                        row = {"group": group, "value": kind, "method": method, "metric": metric.name, "n": known, "mean": mean}
                        rows.append(row | {"ci95": bounds, "worst": False})
                groups = [row for row in rows if row["n"] > 1]  # one photo is no group
                if len(groups) > 1:
                    min(groups, key=lambda row: metric.sign * row["mean"])["worst"] = True
                out += rows
    return out


def correlations(results: Results, table: Grid) -> tuple[list[str], np.ndarray, np.ndarray]:
    """How far metrics say the same, each turned so that higher is better.

    Returns:
        Names of the metrics; Spearman's correlation over all pictures; the share of equal verdicts over every two methods of a photo.
    """
    names = [metric.name for metric in results.metrics if metric.name in table.values]
    sign = {metric.name: metric.sign for metric in results.metrics}
    flat = {name: (sign[name] * table.values[name]).flatten() for name in names}
    pairs = list(itertools.combinations(range(len(table.methods)), 2))
    verdicts = {}
    for name in names:
        values = sign[name] * table.values[name]
        parts = [values[:, other] - values[:, one] for one, other in pairs]
        verdicts[name] = torch.cat(parts).sign() if parts else torch.empty(0)  # 0 where equal, and of NaN
    spearman, agreement = np.full((len(names), len(names)), np.nan), np.full((len(names), len(names)), np.nan)
    for i, one in enumerate(names):
        for j, other in enumerate(names):
            if (flat[one].isfinite() & flat[other].isfinite()).sum() >= 3:
                spearman[i, j] = rank_correlation(flat[one], flat[other])
            decided = verdicts[one] * verdicts[other]
            if decided.any():
                agreement[i, j] = float((decided[decided != 0] > 0).double().mean())
    return names, spearman, agreement


# ---- preferences of people or of a judge between two methods' pictures of a photo


@dataclass(frozen=True)
class Preference:
    """A photo's name, the method that was preferred on it and the other one; `line` of the file says so."""

    image: str
    better: str
    worse: str
    line: int


def read_pairs(path: Path) -> list[Preference]:
    """Rows `{"image": name, "better": method, "worse": method}`, one a line.
    DataError: the file cannot be read, holds no pairs, or a row breaks the schema; its line is named."""
    pairs = []
    for number, row in read_objects(path):
        for key in ("image", "better", "worse"):
            if not isinstance(row.get(key), str):
                raise DataError(f'--pairs {path} line {number}: {key} must be a text: {{"image": .., "better": .., "worse": ..}}')
        if row["better"] == row["worse"]:
            raise DataError(f"--pairs {path} line {number}: {row['better']!r} is better and worse; leave ties out")
        pairs.append(Preference(row["image"], row["better"], row["worse"], number))
    if not pairs:
        raise DataError(f'--pairs {path}: holds no pairs; give lines {{"image": .., "better": METHOD, "worse": METHOD}}')
    return pairs


def check_pairs(path: Path, pairs: Sequence[Preference], images: Collection[str] | None, methods: Collection[str]) -> None:
    """Refuse pairs of what is not measured; images are None where they are not known yet.
    DataError: a method or an image is not of this run; the line is named."""
    for pair in pairs:
        for method in (pair.better, pair.worse):
            if method not in methods:
                raise DataError(f"--pairs {path} line {pair.line}: {method!r} is no method of this run; it has {', '.join(methods)}")
        if images is not None and pair.image not in images:
            raise DataError(f"--pairs {path} line {pair.line}: {pair.image!r} is no picture of this run; give names without suffix")


def pair_accuracy(metrics: Sequence[Metric], table: Grid, pairs: Sequence[Preference]) -> list[dict[str, Any]]:
    """How often each metric prefers what was preferred; ties count half, pairs without a value are left out."""
    row = {name: place for place, name in enumerate(table.names)}
    column = {method: place for place, method in enumerate(table.methods)}
    out = []
    for metric in metrics:
        if metric.name not in table.values:
            continue
        values = metric.sign * table.values[metric.name]
        gaps = [float(values[row[pair.image], column[pair.better]] - values[row[pair.image], column[pair.worse]]) for pair in pairs]
        gaps = [gap for gap in gaps if math.isfinite(gap)]
        right = sum(gap > 0 for gap in gaps) + sum(gap == 0 for gap in gaps) / 2
        accuracy = right / len(gaps) if gaps else math.nan
        sure = wilson_interval(right, len(gaps)) if gaps else (math.nan, math.nan)
        entry = {"metric": metric.name, "n": len(gaps), "accuracy": accuracy, "ci95": sure}
        out.append(entry | {"ties": sum(gap == 0 for gap in gaps)})
    return out
