"""Tests, corrections and agreement on data whose answer is known."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.inputs import Inputs, Item
from benchmarks.metrics import brisque, psnr
from benchmarks.statistics import (
    comparisons,
    correlations,
    grid,
    group_tables,
    means,
    pair_accuracy,
    read_pairs,
)
from benchmarks.suite import Results
from portraitkit.errors import DataError

COUNT = 40


@pytest.fixture
def results() -> Results:
    """Method b is better than a by brisque (lower) on three photos of four; psnr says the opposite; c equals a."""
    names = [f"{place:02d}" for place in range(COUNT)]
    items = [Item(name, method, path=Path("x")) for name in names for method in "abc"]
    generator = torch.Generator().manual_seed(0)
    base = 30 + 5 * torch.randn(COUNT, generator=generator, dtype=torch.float64)
    gain = torch.where(torch.arange(COUNT) % 4 == 0, 0.5, -1.0)
    values = torch.stack([base, base + gain, base], 1).flatten()
    values[0] = math.nan
    groups = {name: {"gender": "f" if int(name) % 2 else "m"} for name in names}
    inputs = Inputs(items, ["a", "b", "c"], groups)
    return Results(inputs, [brisque.METRIC, psnr.METRIC], {"brisque": values, "psnr": values.clone()})


def test_means_leave_missing_values_out(results):
    first = means(results, grid(results))[0]
    known = results.values["brisque"][::3][1:]
    assert (first.method, first.n, first.missing) == ("a", COUNT - 1, 1)
    assert first.mean == pytest.approx(float(known.mean())) and first.ci95[0] < first.mean < first.ci95[1]


def test_direction_decides_what_is_better(results):
    found = {(entry.metric, entry.before, entry.after): entry for entry in comparisons(results, grid(results))}
    down, up = found["brisque", "a", "b"], found["psnr", "a", "b"]
    assert down.gain == up.gain < 0 and down.better and not up.better
    assert down.wins == pytest.approx(1 - up.wins) and down.wins > 0.7
    assert down.p_holm < 0.01 and down.n == COUNT - 1
    same = found["brisque", "a", "c"]
    assert same.ties == COUNT - 1 and same.wins == 0.5 and same.p == 1


def test_groups_name_the_worst(results):
    rows = [row for row in group_tables(results, grid(results)) if row["metric"] == "brisque" and row["method"] == "b"]
    assert [row["value"] for row in rows] == ["f", "m"]
    worst = max(rows, key=lambda row: row["mean"])  # lower is better
    assert worst["worst"] and sum(row["worst"] for row in rows) == 1


def test_metrics_of_opposite_direction_disagree(results):
    names, spearman, agreement = correlations(results, grid(results))
    assert names == ["brisque", "psnr"]
    np.testing.assert_allclose(spearman, [[1, -1], [-1, 1]])
    np.testing.assert_allclose(agreement, [[1, 0], [0, 1]])


def test_accuracy_on_pairs(results, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(f'{{"image": "{place:02d}", "better": "b", "worse": "a"}}\n' for place in range(1, 9)))
    table = grid(results)
    rows = pair_accuracy(results.metrics, table, read_pairs(path, table))
    assert [(row["metric"], row["n"], row["accuracy"]) for row in rows] == [("brisque", 8, 0.75), ("psnr", 8, 0.25)]
    path.write_text('{"image": "01", "better": "b", "worse": "nobody"}\n')
    with pytest.raises(DataError, match="line 1.*nobody"):
        read_pairs(path, table)
