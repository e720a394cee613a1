"""Tests, corrections and agreement on data whose answer is known."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import stats
from benchmarks.inputs import Inputs, Item
from benchmarks.metrics import brisque, fidelity
from benchmarks.stats import (
    LEAST_EFFECT,
    Grid,
    check_pairs,
    comparisons,
    correlations,
    grid,
    group_tables,
    interval,
    means,
    pair_accuracy,
    read_pairs,
    too_few,
)
from benchmarks.suite import Results
from portraitkit.errors import DataError
from portraitkit.stats import bootstrap_interval, sign_flip_test, wilson_interval

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


# ---- values by hand


def measured(methods, **values) -> Results:
    """One row a photo, one column a method; brisque is better lower, psnr higher."""
    tables = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in values.items()}
    count = len(next(iter(tables.values())))
    inputs = Inputs([Item(f"{place:02d}", method, path=Path("x")) for place in range(count) for method in methods], list(methods))
    return Results(inputs, [brisque.METRIC, fidelity.PSNR][: len(tables)], {name: table.flatten() for name, table in tables.items()})


def test_a_comparison_has_the_values_that_its_fields_name():
    nan = math.nan
    rows = [[1, 3, nan], [2, 2, nan], [4, 9, nan], [7, 5, nan], [nan, 8, nan], [100, nan, 1]]
    results = measured("abc", brisque=rows)
    found, other = comparisons(results, grid(results))  # b and c have no photo in common
    change = torch.tensor([2.0, 0, 5, -2], dtype=torch.float64)
    assert (found.before, found.after, found.n, found.gain, found.better) == ("a", "b", 4, 1.25, False)
    assert (found.ci95, found.p, found.p_holm) == (bootstrap_interval(change), sign_flip_test(change), 1)
    assert (found.wins, found.ties, found.wins_ci95) == (1.5 / 4, 1, wilson_interval(1.5, 4))  # one falls, one stays
    assert found.effect == pytest.approx(1.25 / np.std([1, 2, 4, 7], ddof=1))
    assert (other.before, other.after, other.n, other.gain) == ("a", "c", 1, -99) and math.isnan(other.effect) and other.better
    two = comparisons(measured("ab", brisque=rows[:2]), grid(measured("ab", brisque=[row[:2] for row in rows[:2]])))[0]
    assert two.effect == pytest.approx(1 / np.std([1, 2], ddof=1)) and two.n == 2


def test_a_verdict_needs_p_below_5_percent_and_a_tenth_of_a_deviation():
    results = measured("ab", brisque=[[1, 3], [2, 5]])
    one = replace(comparisons(results, grid(results))[0], p_holm=0.0499, effect=LEAST_EFFECT, better=True)
    assert LEAST_EFFECT == 0.1 and one.verdict == "better" and replace(one, better=False).verdict == "worse"
    assert replace(one, p_holm=0.05).verdict == replace(one, effect=0.0999).verdict == replace(one, effect=math.nan).verdict == "undecided"


def test_an_interval_takes_fewer_draws_of_more_values(monkeypatch):
    seen = []
    monkeypatch.setattr(stats, "bootstrap_interval", lambda values, draws, seed: seen.append((len(values), draws, seed)) or (0.0, 1.0))
    for count in (1, 2, 500, 501, 1000, 5000, 6000):
        interval(torch.zeros(count))
    assert seen == [(2, 10_000, 0), (500, 10_000, 0), (501, 9980, 0), (1000, 5000, 0), (5000, 1000, 0), (6000, 1000, 0)]


def test_without_a_seed_every_figure_is_that_of_seed_0():
    generator = torch.Generator().manual_seed(1)
    results = measured("ab", brisque=torch.randn(40, 2, generator=generator).tolist())
    results.inputs.groups.update({item.name: {"g": str(int(item.name) % 2)} for item in results.inputs.items})
    table = grid(results)
    for figures in (means, comparisons, group_tables):
        assert figures(results, table) == figures(results, table, 0) != figures(results, table, 1)


def test_a_set_metric_has_one_value_a_method_and_no_other_figure():
    results = measured("ab", brisque=[[1.0, 2.0], [3.0, math.nan], [5.0, 7.0]])
    results.metrics.append(replace(fidelity.PSNR, name="fid"))
    results.pooled["fid"] = {"a": 12.5}
    results.inputs.groups.update({"00": {"g": "x"}, "01": {"g": "x"}, "02": {"g": "y"}})
    table = grid(results)
    one, two, three, four = means(results, table)
    assert [(row.method, row.metric, row.n, row.missing) for row in (one, two)] == [("a", "brisque", 3, 0), ("b", "brisque", 2, 1)]
    assert (three.mean, three.n, three.missing) == (12.5, 3, 0) and math.isnan(four.mean) and (four.n, four.missing) == (3, 0)
    assert all(math.isnan(end) for row in (three, four) for end in row.ci95)
    assert len(comparisons(results, table)) == 1 and {row["metric"] for row in group_tables(results, table)} == {"brisque"}
    assert correlations(results, table)[0] == ["brisque"]
    assert [row["metric"] for row in pair_accuracy(results.metrics, table, [stats.Preference("00", "b", "a", 1)])] == ["brisque"]


@pytest.mark.parametrize(("names", "worst"), [("xxyy", ["y"]), ("xxxy", []), ("xxxx", []), ("xxyz", []), ("xxy-", [])])
def test_the_worst_of_a_group_is_told_where_two_have_two_photos(names, worst):
    results = measured("a", brisque=[[1.0], [2.0], [5.0], [9.0]])
    results.inputs.groups.update({f"{place:02d}": {"g": name} for place, name in enumerate(names) if name != "-"})
    rows = group_tables(results, grid(results))
    assert [row["value"] for row in rows if row["worst"]] == worst
    assert [row["n"] for row in rows] == [names.count(name) for name in sorted({*names} - {"-"})]


@pytest.mark.parametrize(("known", "spearman"), [(2, math.nan), (3, 0.5), (4, 0.8)])
def test_ranks_of_three_pictures_have_a_correlation(known, spearman):
    rows = [[1.0], [2.0], [3.0], [4.0]]
    other = [[-2.0], [-1.0], [-3.0], [-4.0]]  # of a metric that rises as brisque falls
    kept = [row if place < known else [math.nan] for place, row in enumerate(other)]
    names, found, agreement = correlations(results := measured("a", brisque=rows, psnr=kept), grid(results))
    np.testing.assert_allclose(found, [[1, spearman], [spearman, 1 if known > 2 else math.nan]])
    assert names == ["brisque", "psnr"] and np.isnan(agreement).all()


def test_verdicts_of_ties_and_of_missing_values_are_none():
    nan = math.nan
    psnr, brisques = [[1, 2], [2, 2], [3, 1], [nan, 1], [1, 9]], [[5, 4], [5, 4], [4, 5], [5, 4], [5, 5]]
    _, _, agreement = correlations(results := measured("ab", brisque=brisques, psnr=psnr), grid(results))
    np.testing.assert_allclose(agreement, [[1, 1], [1, 1]])  # the first and the third photo alone are decided by both
    psnr[2] = [1, 3]
    np.testing.assert_allclose(correlations(results := measured("ab", brisque=brisques, psnr=psnr), grid(results))[2][0, 1], 0.5)


def test_preferences_count_ties_half_and_missing_values_not():
    nan = math.nan
    table = Grid(["00", "01", "02", "03"], ["a", "b"], {"brisque": torch.tensor([[1.0, 2], [3, 3], [5, 4], [nan, 1]])})
    said = [stats.Preference(name, "b", "a", 1) for name in table.names]
    (row,) = pair_accuracy([brisque.METRIC, fidelity.PSNR], table, [*said, said[2]])
    assert row == {"metric": "brisque", "n": 4, "accuracy": 2.5 / 4, "ci95": wilson_interval(2.5, 4), "ties": 1}
    (none,) = pair_accuracy([brisque.METRIC], table, said[3:])
    assert none["n"] == none["ties"] == 0 and all(map(math.isnan, (none["accuracy"], *none["ci95"])))


@pytest.mark.parametrize(("photos", "comparisons", "needed"), [(5, 1, 6), (5, 2, 7), (6, 2, 7), (9, 13, 10), (1, 12, 9)])
def test_too_few_photos_are_told_how_many_would_do(photos, comparisons, needed):
    line = too_few(photos, comparisons)
    assert f"give {needed} photos or more" in line and too_few(needed, comparisons) == "" != too_few(needed - 1, comparisons)
    assert f"least p is {2 / 2**photos:.2g}" in line and f"below {0.05 / comparisons:.2g}" in line
    assert (f"{comparisons} comparisons by" in line) == (comparisons > 1) and (f"with {photos} photos," in line) == (photos > 1)
