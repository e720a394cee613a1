"""Tests, corrections and agreement on data whose answer is known."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.inputs import Inputs, Item
from benchmarks.metrics import brisque, fidelity
from benchmarks.stats import (
    check_pairs,
    comparisons,
    correlations,
    grid,
    group_tables,
    means,
    pair_accuracy,
    read_pairs,
    too_few,
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
    return Results(inputs, [brisque.METRIC, fidelity.PSNR], {"brisque": values, "psnr": values.clone()})


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
    assert same.ties == COUNT - 1 and same.wins == 0.5 and same.p == 1 and not same.better
    assert (down.verdict, up.verdict, same.verdict) == ("better", "worse", "undecided")
    assert replace(down, effect=0.09).verdict == replace(down, p_holm=0.06).verdict == "undecided"


def test_one_photo_has_no_interval_and_is_not_the_worst(results):
    groups = {name: {"gender": "x" if name == "03" else "f" if int(name) % 2 else "m"} for name in results.inputs.groups}
    alone = replace(results, inputs=replace(results.inputs, groups=groups))
    results.values["brisque"][3 * 3 : 3 * 4] = 1000  # by far the worst
    rows = [row for row in group_tables(alone, grid(alone)) if row["metric"] == "brisque" and row["method"] == "b"]
    lonely = next(row for row in rows if row["value"] == "x")
    assert lonely["n"] == 1 and lonely["mean"] == 1000 and all(map(math.isnan, lonely["ci95"]))
    assert not lonely["worst"] and sum(row["worst"] for row in rows) == 1
    values = {"psnr": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)}
    single = Results(replace(alone.inputs, items=alone.inputs.items[:3]), [fidelity.PSNR], values)
    table = grid(single)
    assert all(map(math.isnan, means(single, table)[0].ci95 + comparisons(single, table)[0].ci95))


def test_two_photos_have_an_interval_and_are_a_group(results):
    groups = {name: {"gender": "x" if name in ("03", "05") else "f"} for name in results.inputs.groups}
    results.values["brisque"][3 * 3 : 3 * 4] = results.values["brisque"][3 * 5 : 3 * 6] = 1000
    several = replace(results, inputs=replace(results.inputs, groups=groups))
    rows = [row for row in group_tables(several, grid(several)) if row["metric"] == "brisque" and row["value"] == "x"]
    assert len(rows) == 3 and all(row["n"] == 2 and row["ci95"] == (1000, 1000) and row["worst"] for row in rows)


def test_the_seed_reaches_every_interval(results):
    results.values["brisque"] = torch.randn(3 * COUNT, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = grid(results)
    one, same, other = (comparisons(results, table, seed)[0] for seed in (0, 0, 1))
    assert one.ci95 == same.ci95 != other.ci95
    assert means(results, table, 0)[0].ci95 != means(results, table, 1)[0].ci95


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


def test_agreement_is_the_share_of_photos_on_which_both_prefer_one_method():
    """Brisque, lower, prefers b on all photos but the first; psnr on the second and the last."""
    inputs = Inputs([Item(str(place), method, path=Path("x")) for place in range(4) for method in "ab"], ["a", "b"])
    values = {"brisque": torch.tensor([1.0, 2, 2, 1, 3, 2, 4, 3]), "psnr": torch.tensor([5.0, 4, 5, 6, 5, 4, 5, 7])}
    results = Results(inputs, [brisque.METRIC, fidelity.PSNR], {name: value.double() for name, value in values.items()})
    np.testing.assert_allclose(correlations(results, grid(results))[2], [[1, 0.75], [0.75, 1]])


def test_metrics_agree_whatever_their_sign_and_a_missing_value_is_no_verdict():
    """A metric around zero, and one that falls as it rises; one of its values is missing."""
    inputs = Inputs([Item(str(place), method, path=Path("x")) for place in range(4) for method in "ab"], ["a", "b"])
    values = torch.tensor([-3.0, -1, 2, -2, 0.5, 1, 3, 4], dtype=torch.float64)
    missing = torch.where(torch.arange(8) == 5, math.nan, -(values + 10))
    results = Results(inputs, [brisque.METRIC, fidelity.PSNR], {"brisque": missing, "psnr": values})
    _, spearman, agreement = correlations(results, grid(results))
    np.testing.assert_allclose([spearman, agreement], np.ones((2, 2, 2)))


def test_accuracy_on_pairs(results, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(f'{{"image": "{place:02d}", "better": "b", "worse": "a"}}\n' for place in range(1, 9)))
    table = grid(results)
    rows = pair_accuracy(results.metrics, table, read_pairs(path))
    assert [(row["metric"], row["n"], row["accuracy"]) for row in rows] == [("brisque", 8, 0.75), ("psnr", 8, 0.25)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no pairs"),
        ("\n \n", "holds no pairs"),
        ("[1]", "line 1"),
        ('{"image": "1", "better": "b"}', "line 1.*worse"),
        ('{"image": ["1"], "better": "b", "worse": "a"}', "line 1.*image"),
        ('{"image": "1", "better": "b", "worse": {}}', "line 1.*worse"),
        ('{"image": "1", "better": "b", "worse": "b"}', "line 1.*'b'"),
        ('{"image": "1", "better": "b", "worse": "a"}\n{"image": "1", "better": "a", "worse": "nobody"}', "line 2.*nobody"),
        ('{"image": "no such", "better": "b", "worse": "a"}', "line 1.*no such"),
    ],
)
def test_pairs_that_cannot_be_used_are_refused(tmp_path, text, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        check_pairs(path, read_pairs(path), {"1"}, ["a", "b"])


def test_many_methods_can_be_told_apart():
    """12 methods by 9 metrics are 594 comparisons; on each of 24 photos every method lies above the one before."""
    methods, metrics = "abcdefghijkl", [replace(fidelity.PSNR, name=f"m{place}") for place in range(9)]
    items = [Item(f"{place:02d}", method, path=Path("x")) for place in range(24) for method in methods]
    noise = 0.1 * torch.randn(len(metrics), 24, len(methods), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = (noise + torch.arange(len(methods))).flatten(1)
    results = Results(Inputs(items, list(methods)), metrics, {metric.name: values[place] for place, metric in enumerate(metrics)})
    found = comparisons(results, grid(results))
    assert len(found) == 594 and all(entry.p_holm < 0.05 and entry.better for entry in found)


def test_too_few_photos_are_named():
    line = too_few(14, 544)
    assert "14 photos" in line and "544 comparisons" in line and "15 photos or more" in line and "\n" not in line
    assert too_few(15, 544) == too_few(1, 0) == ""
    assert "1 photo," in too_few(1, 1) and "6 photos" in too_few(1, 1)
