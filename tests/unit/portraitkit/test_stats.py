"""Intervals and tests that hold what they promise, and gains with the right sign."""

import itertools
import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.optimize import brentq

from portraitkit.stats import (
    EXACT,
    _count,
    _estimate,
    bootstrap_interval,
    cluster_interval,
    group_rank,
    holm,
    mean_by,
    paired_change,
    person_interval,
    rank_correlation,
    ranks_in_groups,
    sign_flip_test,
    wilson_interval,
)

NORMAL = (lambda n, g: torch.randn(n, generator=g, dtype=torch.float64), 0.0)
EXPONENTIAL = (lambda n, g: torch.empty(n, dtype=torch.float64).exponential_(generator=g), 1.0)
COIN = (lambda n, g: (torch.rand(n, generator=g) < 0.3).double(), 0.3)


@pytest.mark.parametrize("level", [0.5, 0.95])
@pytest.mark.parametrize("distribution", [NORMAL, EXPONENTIAL, COIN], ids=["normal", "exponential", "coin"])
def test_an_interval_covers_the_mean_as_often_as_it_says(distribution, level):
    draw, mean = distribution
    generator, repeats, covered = torch.Generator().manual_seed(0), 400, 0
    for repeat in range(repeats):
        low, high = bootstrap_interval(draw(50, generator), draws=300, seed=repeat, level=level)
        covered += low <= mean <= high
    # Four standard errors of the count; the percentile bootstrap of 50 values covers a little less than its level.
    error = 4 * math.sqrt(level * (1 - level) / repeats)
    assert level - 0.03 - error < covered / repeats < level + error


def test_an_interval_is_that_of_the_normal_approximation():
    values = torch.randn(400, generator=torch.Generator().manual_seed(1)) * 3 + 7
    low, high = bootstrap_interval(values)
    half = 1.96 * float(values.std()) / 20
    assert low == pytest.approx(float(values.mean()) - half, abs=0.05 * half)
    assert high == pytest.approx(float(values.mean()) + half, abs=0.05 * half)


def test_an_interval_is_repeatable_and_leaves_out_what_is_not_finite():
    values = torch.tensor([1.0, 2.0, 4.0, 8.0])
    with_holes = torch.tensor([1.0, math.nan, 2.0, math.inf, 4.0, 8.0, -math.inf])
    interval = bootstrap_interval(values, draws=500)
    assert bootstrap_interval(with_holes, draws=500) == interval == bootstrap_interval(values, draws=500)
    assert bootstrap_interval(values, draws=500, seed=1) != interval
    assert 1 <= interval[0] < 3.75 < interval[1] <= 8


def test_intervals_of_almost_nothing():
    assert all(math.isnan(end) for end in bootstrap_interval(torch.tensor([math.nan])))
    assert all(math.isnan(end) for end in bootstrap_interval(torch.zeros(0)))
    assert bootstrap_interval(torch.tensor([0.25])) == (0.25, 0.25)


def test_a_gain_is_after_minus_before():
    change = paired_change(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.5, 4.5]))
    assert (change.before, change.after, change.gain) == (2.0, 3.0, 1.0)
    assert 0 < change.ci95[0] <= 1 <= change.ci95[1]
    loss = paired_change(torch.tensor([2.0, 2.5, 4.5]), torch.tensor([1.0, 2.0, 3.0]))
    assert loss.gain == -1 and loss.ci95[1] < 0
    assert json.loads(json.dumps(asdict(change))) == {"before": 2.0, "after": 3.0, "gain": 1.0, "ci95": list(change.ci95), "people": 3}


def test_only_photos_known_on_both_sides_count():
    before = torch.tensor([1.0, math.nan, 100.0, 3.0])
    after = torch.tensor([2.0, 50.0, math.nan, 4.0])
    change = paired_change(before, after)
    assert (change.before, change.after, change.gain, change.ci95) == (2.0, 3.0, 1.0, (1.0, 1.0))
    nothing = paired_change(torch.tensor([1.0, math.nan]), torch.tensor([math.nan, 1.0]))
    assert all(math.isnan(value) for value in (nothing.before, nothing.after, nothing.gain, *nothing.ci95))


def test_the_interval_is_of_the_pairs_not_of_the_photos():
    """Photos that differ a lot do not hide a small gain that they all share."""
    generator = torch.Generator().manual_seed(0)
    before = 100 * torch.rand(40, generator=generator, dtype=torch.float64)
    change = paired_change(before, before + 0.1 + 0.05 * torch.randn(40, generator=generator, dtype=torch.float64))
    assert 0.05 < change.ci95[0] < change.gain < change.ci95[1] < 0.15


@pytest.mark.parametrize(
    ("wins", "votes", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718), (0, 0, 0, 1)],
)
def test_wilson_intervals_are_those_of_newcombe_1998(wins, votes, low, high):
    assert wilson_interval(wins, votes) == pytest.approx((low, high), abs=6e-5)


def test_sign_flips_are_exact_for_few():
    assert sign_flip_test(torch.tensor([1.0, 1.0, 1.0])) == 2 / 8
    assert sign_flip_test(torch.tensor([1.0, 1.0, 1.0, 0.0, math.nan])) == 2 / 8, "a tie flips nothing"
    assert sign_flip_test(torch.zeros(3)) == sign_flip_test(torch.tensor([1.0, -1.0])) == 1
    assert math.isnan(sign_flip_test(torch.tensor([math.nan])))
    values = torch.tensor([0.3, -0.1, 0.4, 0.4, -0.2, 0.1, 0.7, 0.6, -0.5, 0.2, 0.9], dtype=torch.float64)
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=len(values))), dtype=torch.float64)
    assert sign_flip_test(values) == float(((signs @ values).abs() >= float(values.sum()) - 1e-9).double().mean())
    assert sign_flip_test(torch.ones(EXACT)) == 2.0 ** (1 - EXACT)


@pytest.mark.parametrize("shift", [0.02, 0.2, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("lattice", [False, True])
def test_sign_flips_of_many_are_estimated_far_into_the_tail(shift, lattice):
    """Against the exact count, down to 1e-9 and also where all differences have one size, so that many patterns tie."""
    values = torch.randn(30, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + shift
    values = values.sign() if lattice else values
    least = abs(float(values.sum())) * (1 - 1e-9)
    exact = _count(values.abs(), least)
    assert _estimate(values.abs() / values.abs().max(), least / float(values.abs().max()), 10_000, 0) == pytest.approx(exact, rel=0.06)


def test_sign_flips_of_many_have_no_floor():
    assert sign_flip_test(torch.ones(200)) == 2.0**-199
    strong = torch.randn(300, generator=torch.Generator().manual_seed(0)) + 1
    assert 0 < sign_flip_test(strong) < 1e-30
    assert sign_flip_test(strong) == sign_flip_test(strong) != sign_flip_test(strong, seed=1)
    uniform = [sign_flip_test(torch.randn(40, generator=torch.Generator().manual_seed(seed)), draws=500) for seed in range(300)]
    assert 0.01 <= np.mean(np.array(uniform) < 0.05) <= 0.1 and 0.4 < np.mean(uniform) < 0.6


def test_holm_leaves_out_what_is_unknown():
    corrected = holm([0.01, 0.04, math.nan, 0.03])
    assert corrected[:2] + corrected[3:] == pytest.approx([0.03, 0.06, 0.06]) and math.isnan(corrected[2])


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_intervals_are_scipys(level):
    for wins, votes in itertools.product(range(0, 31, 3), (30, 31, 200)):
        theirs = scipy.stats.binomtest(wins, votes).proportion_ci(level, method="wilson")
        assert wilson_interval(wins, votes, level=level) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_sign_flips_are_scipys_permutation_test_of_pairs():
    for seed in range(8):
        values = (10 * torch.randn(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 3 * seed).round() / 10
        theirs = scipy.stats.permutation_test((values.numpy(),), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
        assert sign_flip_test(values) == pytest.approx(theirs, abs=1e-12)


def test_bootstrap_intervals_are_scipys_percentiles():
    values = torch.empty(60, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(0))
    theirs = scipy.stats.bootstrap((values.numpy(),), np.mean, n_resamples=9999, method="percentile", rng=0).confidence_interval
    assert bootstrap_interval(values, draws=9999) == pytest.approx((theirs.low, theirs.high), abs=0.03 * (theirs.high - theirs.low))


def test_rank_correlation_is_scipys_with_ties_and_without_what_is_not_finite():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(6, (40,), generator=generator).double() for _ in range(2))
    assert rank_correlation(first, second) == pytest.approx(scipy.stats.spearmanr(first, second).statistic)
    holes = torch.cat([first, torch.tensor([math.nan, math.inf, 3.0])]), torch.cat([second, torch.tensor([1.0, 2.0, -math.inf])])
    assert rank_correlation(*holes) == rank_correlation(first, second) == rank_correlation(first.clone().requires_grad_(), second)
    assert math.isnan(rank_correlation(first, torch.ones(40))) and math.isnan(rank_correlation(first[:0], second[:0]))


def test_ranks_are_taken_inside_groups_and_a_score_that_says_nothing_counts_as_chance():
    truth = torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0, 30.0, 5.0, 5.0, 5.0, 7.0, 8.0, math.nan])
    scores = torch.tensor([1.0, 2.0, 3.0, 3.0, 2.0, 1.0, 1.0, 2.0, 3.0, 4.0, 4.0, 9.0])
    groups = [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert ranks_in_groups(scores, truth, groups) == pytest.approx([1.0, -1.0, 0.0])  # the third group's truth does not vary
    few = group_rank([1.0, -1.0, 0.0])
    assert (few.rank, few.groups) == (0.0, 3) and math.isnan(few.ci95[0]) and str(few) == "0.00 (3 groups)"
    many = group_rank([0.2, 0.4, 0.6] * 4)
    assert many.rank == pytest.approx(0.4) and 0.2 < many.ci95[0] < 0.4 < many.ci95[1] < 0.6 and many.groups == 12
    assert math.isnan(group_rank([]).rank) and group_rank([]).groups == 0


def test_a_person_with_one_photo_counts_in_an_interval():
    low, high = cluster_interval(torch.tensor([0.0, 1.0, 2.0, 3.0]), ["a", "b", "c", "d"])
    assert 0 < low < 1.5 < high < 3


def test_a_person_without_a_value_counts_nowhere():
    values, people = torch.tensor([math.nan, 0.0, 1.0, 2.0, 3.0]), ["a", "b", "c", "d", "e"]
    assert cluster_interval(values, people) == cluster_interval(values[1:], people[1:])


def test_an_estimated_p_value_is_no_more_than_one():
    differences = torch.tensor([1.0, -1.0] * 20 + [1e-6], dtype=torch.float64)
    found = [sign_flip_test(differences, draws=200, seed=seed) for seed in range(20)]
    assert max(found) == 1 and min(found) > 0.7


# ---- the same figures by formulas written again here


def percentiles(sums, counts=1, *, draws=10_000, seed=0, level=0.95):
    """Of the bootstrap of `sum(sums) / sum(counts)`, rows drawn as a seed of torch's draws them."""
    sums, counts = np.broadcast_arrays(np.asarray(sums, float), np.asarray(counts, float))
    rows = torch.randint(len(sums), (draws, len(sums)), generator=torch.Generator().manual_seed(seed)).numpy()
    return pytest.approx(tuple(np.quantile(sums[rows].sum(1) / counts[rows].sum(1), [0.5 - level / 2, 0.5 + level / 2])), abs=1e-9)


def test_intervals_are_the_percentiles_of_the_draws_of_seed_0():
    values = torch.tensor([0.3, -1.0, 2.0, 0.5, 0.0], dtype=torch.float64)
    assert bootstrap_interval(values) == percentiles(values)
    assert bootstrap_interval(values, draws=301, seed=5, level=0.8) == percentiles(values, draws=301, seed=5, level=0.8)
    people, sums, counts = ["a", "b", "a", "c", "c"], [2.3, -1.0, 0.5], [2, 1, 2]
    assert cluster_interval(values, people) == percentiles(sums, counts)
    assert cluster_interval(values, people, draws=99) == percentiles(sums, counts, draws=99)
    assert mean_by(values, people).tolist() == pytest.approx([1.15, -1.0, 0.25])
    assert mean_by(torch.tensor([1.0, math.nan, 3.0]), ["a", "b", "a"]).tolist() == pytest.approx([2.0, math.nan], nan_ok=True)
    assert all(map(math.isnan, cluster_interval(values[:0], [])))


def test_a_change_of_six_people_has_an_interval_and_of_five_none():
    before = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, math.nan], dtype=torch.float64)
    gain = torch.tensor([0.5, 1.0, -1.0, 2.0, 0.0, 3.0, 1.5, 9.0], dtype=torch.float64)
    people = ["a", "a", "b", "c", "d", "e", "f", "g"]
    change = paired_change(before, before + gain, people)
    assert (change.people, change.gain) == (6, pytest.approx(1.0)) and change.ci95 == percentiles(
        [1.5, -1, 2, 0, 3, 1.5], [2, 1, 1, 1, 1, 1]
    )
    five = paired_change(before[:6], (before + gain)[:6], people[:6])
    assert five.people == 5 and all(map(math.isnan, five.ci95)) and five.gain == pytest.approx(5.5 / 6)
    assert paired_change(before[:6], (before + gain)[:6]).people == 6
    assert person_interval(gain, people, draws=50) == percentiles([1.5, -1, 2, 0, 3, 1.5, 9], [2, 1, 1, 1, 1, 1, 1], draws=50)
    assert all(map(math.isnan, person_interval(before, ["a", "b", "c", "d", "e", "e", "e", "g"])))  # g has no value
    for refused in (lambda: paired_change(before, before, people[:7]), lambda: person_interval(gain, people[:7])):
        with pytest.raises(ValueError, match="zip"):
            refused()


def test_groups_have_an_interval_from_six_on_and_say_so():
    ranks = [0.2, 0.4, 0.6, 0.1, 0.9, 0.8]
    six, five = group_rank(ranks), group_rank(ranks[:5])
    assert six.ci95 == percentiles(ranks) and str(six) == "0.50 (6 groups, 95 % interval 0.27 to 0.73)"
    assert all(map(math.isnan, five.ci95)) and str(five) == "0.44 (5 groups)"


def test_wilson_intervals_end_at_0_and_1():
    ends = [(*wilson_interval(0, votes), *wilson_interval(votes, votes)) for votes in range(1, 300)]
    assert all(0 <= low < 1e-12 and 1 - 1e-12 < top <= 1 for low, _, _, top in ends)
    assert any(top == 1 for *_, top in ends) and all(high + bottom == pytest.approx(1) for _, high, bottom, _ in ends)


def test_sums_that_tie_in_decimals_tie_whatever_their_unit():
    """.1 + .2 is .3: of 16 patterns 12 reach it, 4 of them only where rounding does not hide the tie."""
    for unit in (1e-9, 1.0, 1e9):
        assert sign_flip_test(unit * torch.tensor([0.1, 0.2, -0.3], dtype=torch.float64)) == 1
        assert sign_flip_test(unit * torch.tensor([0.1, 0.2, 0.3, -0.3], dtype=torch.float64)) == 12 / 16


def test_thirty_two_pairs_are_counted_and_thirty_three_drawn():
    values = torch.randn(33, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 0.3
    assert sign_flip_test(values[:32]) == sign_flip_test(values[:32], seed=1) == _count(values[:32].abs(), abs(float(values[:32].sum())))
    assert sign_flip_test(torch.ones(40)) == 2.0**-39 < sign_flip_test(torch.tensor([1.0] * 39 + [-1e-3])) < 1.1 * 2.0**-38
    assert sign_flip_test(values) == sign_flip_test(values, draws=10_000, seed=0) != sign_flip_test(values, seed=1)


@pytest.mark.parametrize(("draws", "seed"), [(1, 0), (7, 0), (200, 3)])
def test_the_estimate_is_siegmunds_with_the_observed_pattern_as_one_draw(draws, seed):
    sizes, least = torch.linspace(0.1, 1, 40, dtype=torch.float64), 9.0
    tilt = brentq(lambda tilt: float((sizes * (tilt * sizes).tanh()).sum()) - least, 0, 100, xtol=1e-14)
    signs = torch.rand(draws, 40, generator=torch.Generator().manual_seed(seed)) < (1 / (1 + (-2 * tilt * sizes).exp())).float()
    sums = [float(sizes[row].sum() - sizes[~row].sum()) for row in signs]
    bend = float((tilt * sizes).cosh().log().sum())
    weights = [math.exp(bend - tilt * least), *(math.exp(bend - tilt * one) for one in sums if one >= least)]
    assert _estimate(sizes, least, draws, seed) == pytest.approx(2 * sum(weights) / (draws + 1), rel=1e-9)


def test_holm_multiplies_by_what_is_left_and_stays_monotone_and_below_one():
    assert holm([0.01, 0.02, 0.03]) == pytest.approx([0.03, 0.04, 0.04])
    assert holm([0.9, 0.4]) == pytest.approx([0.9, 0.8]) and holm([0.6, 0.7, math.nan])[:2] == [1, 1] and holm([]) == []
