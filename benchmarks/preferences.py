"""Preferences of people or of a judge between two methods' pictures of a photo, and how often each metric agrees."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.metric import Metric
from benchmarks.stats import Grid
from portraitkit.errors import DataError
from portraitkit.files.jsonl import read_objects
from portraitkit.stats import wilson_interval


@dataclass(frozen=True)
class Preference:
    """A photo's name, the method that was preferred on it and the other one; `line` of the file says so."""

    image: str
    better: str
    worse: str
    line: int


def read_pairs(path: Path) -> list[Preference]:
    """Rows `{"image": name, "better": method, "worse": method}`, one a line.

    Raises:
        DataError: the file cannot be read, holds no pairs, or a row breaks the schema; its line is named.
    """
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

    Raises:
        DataError: a method or an image is not of this run; the line is named.
    """
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
