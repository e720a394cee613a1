"""The blind test's statistics against known results and against simulation."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp

from benchmarks.blind_test import statistics as st


def simulate(strengths, tie: float, votes: int, raters: int, seed: int) -> np.ndarray:
    """Counts (raters, pairs, 3) of independent raters who follow the Davidson model, `votes` on each pair."""
    generator = np.random.default_rng(seed)
    pairs = st.pairs_of(len(strengths))
    out = np.zeros((raters, len(pairs), 3), int)
    for row, (i, j) in enumerate(pairs):
        logits = np.array([strengths[i], (strengths[i] + strengths[j]) / 2 + tie, strengths[j]])
        out[:, row] = generator.multinomial(votes, np.exp(logits - logsumexp(logits)), size=raters)
    return out


@pytest.mark.parametrize(
    ("wins", "votes", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_those_of_newcombe_1998(wins, votes, low, high):
    assert st.wilson_interval(wins, votes) == pytest.approx((low, high), abs=6e-5)


def test_no_votes_say_nothing():
    assert st.wilson_interval(0, 0) == (0.0, 1.0)
    assert math.isnan(st.win_rate([0, 0, 0]).value)
    assert st.sign_test(0, 0) == 1.0


def test_davidson_finds_the_maximum_of_the_likelihood(monkeypatch):
    monkeypatch.setattr(st, "VIRTUAL_VOTES", 0.0)
    counts = simulate([0.8, 0.1, -0.3, -0.6], -0.4, 60, 1, 0)[0]
    fitted = st.fit_davidson(counts[None], 4)[0]

    def loss(values):
        strengths = np.append(values[:3], -values[:3].sum())
        total = 0.0
        for (i, j), row in zip(st.pairs_of(4), counts, strict=True):
            logits = np.array([strengths[i], (strengths[i] + strengths[j]) / 2 + values[3], strengths[j]])
            total -= row @ (logits - logsumexp(logits))
        return total

    best = minimize(loss, np.zeros(4), method="BFGS").x
    assert fitted[[0, 1, 2, 4]] == pytest.approx(best, abs=1e-4)
    assert fitted[:4].sum() == pytest.approx(0)


def test_two_methods_have_a_closed_form(monkeypatch):
    monkeypatch.setattr(st, "VIRTUAL_VOTES", 0.0)
    fitted = st.fit_davidson(np.array([[[60.0, 25.0, 15.0]]]), 2)[0]
    assert fitted[0] - fitted[1] == pytest.approx(math.log(60 / 15))
    assert fitted[2] == pytest.approx(math.log(25 / math.sqrt(60 * 15)))


def test_a_method_that_never_loses_has_a_finite_strength():
    fitted = st.fit_davidson(np.array([[[30, 0, 0]]]), 2)[0]
    assert np.isfinite(fitted).all() and fitted[0] > 2


def test_intervals_hold_the_planted_strengths_about_95_times_in_100():
    planted = np.array([0.5, 0.0, -0.5])
    inside = []
    for seed in range(60):
        found = st.strengths(simulate(planted, -0.7, 7, 40, seed), 3, draws=300, seed=seed)
        inside += [low <= value <= high for low, value, high in zip(found.low, planted, found.high, strict=True)]
    assert 0.88 <= np.mean(inside) <= 1.0


def test_votes_must_link_all_methods():
    counts = np.zeros((6, 3))
    counts[0] = counts[5] = 5  # 0-1 and 2-3
    assert not st.is_connected(counts, 4)
    counts[1, 0] = 1
    assert st.is_connected(counts, 4)


def test_alpha_is_that_of_krippendorffs_example():
    generator = np.random.default_rng(0)
    assert st.agreement(np.array([[4, 0, 0], [0, 4, 0], [0, 0, 4]])) == pytest.approx(1)
    assert abs(st.agreement(generator.multinomial(6, [1 / 3] * 3, size=3000))) < 0.02
    # Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", example A: two observers, binary data, alpha = .095.
    first, second = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    units = np.zeros((10, 3), int)
    for row, pair in enumerate(zip(first, second, strict=True)):
        for value in pair:
            units[row, 2 * value] += 1
    assert st.agreement(units) == pytest.approx(0.095, abs=5e-4)


def test_alpha_without_two_votes_on_a_unit_or_without_variation_is_unknown():
    assert math.isnan(st.agreement(np.array([[1, 0, 0], [0, 0, 1]])))
    assert math.isnan(st.agreement_interval(np.array([[3, 0, 0], [2, 0, 0]])).value)


def test_position_bias_is_found_and_not_imagined():
    share, p_value = st.position_bias(260, 140)
    assert share.value == 0.65 and p_value < 1e-6
    assert st.position_bias(203, 197)[1] > 0.5


def test_power_is_what_simulation_gives():
    votes = st.votes_needed(0.6)
    assert votes == 194
    wins = np.random.default_rng(0).binomial(votes, 0.6, size=20_000)
    found = np.abs(wins / votes - 0.5) > 1.959964 * 0.5 / math.sqrt(votes)
    assert found.mean() == pytest.approx(0.8, abs=0.03)
    assert st.detectable_rate(194) == pytest.approx(0.6, abs=0.001)
    assert math.isnan(st.detectable_rate(2))


def test_raters_who_always_say_the_same_count_for_less():
    generator = np.random.default_rng(1)
    alone = generator.multinomial(10, [0.5, 0.1, 0.4], size=60)
    stubborn = np.zeros((60, 3), int)
    stubborn[np.arange(60), generator.choice([0, 2], size=60)] = 10
    assert st.design_effect(alone) < 1.5
    assert st.design_effect(stubborn) == pytest.approx(10, rel=0.1)
