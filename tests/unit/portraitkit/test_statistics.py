"""Intervals and tests that hold what they promise, and gains with the right sign."""

import json
import math

import pytest
import torch

from portraitkit.stats import bootstrap_interval, paired_change, wilson_interval

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
    assert json.loads(json.dumps(change.to_dict())) == {"before": 2.0, "after": 3.0, "gain": 1.0, "ci95": list(change.ci95)}


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
