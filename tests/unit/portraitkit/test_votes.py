"""The blind test's statistics against known results and against simulation."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from portraitkit import votes as st


def simulate(strengths, tie: float, votes: int, raters: int, seed: int) -> np.ndarray:
    """Counts (raters, pairs, 3) of independent raters who follow the Davidson model, `votes` on each pair."""
    generator = np.random.default_rng(seed)
    pairs = st.pairs_of(len(strengths))
    out = np.zeros((raters, len(pairs), 3), int)
    for row, (i, j) in enumerate(pairs):
        logits = np.array([strengths[i], (strengths[i] + strengths[j]) / 2 + tie, strengths[j]])
        out[:, row] = generator.multinomial(votes, np.exp(logits - logsumexp(logits)), size=raters)
    return out


def leaning_crowd(raters: int, votes: int, *, lean: float, preference: float, seed: int) -> np.ndarray:
    """Counts (raters, 3) on one pair: each rater has an own lean about the crowd's `preference`, logits of standard deviation `lean`."""
    generator = np.random.default_rng(seed)
    own = generator.normal(preference, lean, raters)
    chances = softmax(np.stack([own / 2, np.full(raters, -0.5), -own / 2], 1), axis=1)
    return np.array([generator.multinomial(votes, row) for row in chances])


def test_no_votes_say_nothing():
    assert math.isnan(st.win_rate([0, 0, 0]).value)
    nothing = np.zeros((3, 3), int)
    assert st.preference_test(nothing) == 1.0 and st.design_effect(nothing) == 1.0
    assert (st.win_rate_by_rater(nothing).low, st.win_rate_by_rater(nothing).high) == (0.0, 1.0)


@pytest.mark.parametrize("raters", [8, 30])
def test_leaning_raters_without_a_common_preference_name_no_winner(raters):
    """Twenty votes a rater are no twenty raters: a sign test on all votes rejects in about 40 of 100 such studies."""
    rejected, covered, by_votes = [], [], []
    for seed in range(200):
        votes = leaning_crowd(raters, 20, lean=1.5, preference=0.0, seed=seed)
        rejected.append(st.preference_test(votes) < 0.05)
        rate = st.win_rate_by_rater(votes)
        covered.append(rate.low <= 0.5 <= rate.high)
        alone = st.win_rate(votes.sum(0).tolist())
        by_votes.append(alone.low <= 0.5 <= alone.high)
    assert np.mean(rejected) <= 0.08 and np.mean(covered) >= 0.91 > 0.75 > np.mean(by_votes)


def test_a_common_preference_is_found_through_the_leans():
    studies = [leaning_crowd(30, 20, lean=0.5, preference=0.6, seed=seed) for seed in range(60)]
    assert np.mean([st.preference_test(votes) < 0.05 for votes in studies]) > 0.9
    rates = [st.win_rate_by_rater(votes) for votes in studies]
    assert np.mean([rate.low > 0.5 for rate in rates]) > 0.9


def test_independent_votes_lose_little_by_counting_raters():
    votes = leaning_crowd(30, 20, lean=0.0, preference=0.0, seed=0)
    alone, rate = st.win_rate(votes.sum(0).tolist()), st.win_rate_by_rater(votes)
    assert rate.value == alone.value and rate.high - rate.low == pytest.approx(alone.high - alone.low, rel=0.1)


def test_few_raters_cannot_say_what_others_prefer():
    """However many votes they cast and however much they agree."""
    for raters in range(1, 6):
        assert st.preference_test(np.tile([100, 0, 0], (raters, 1))) == 2 / 2**raters >= 0.05
    assert st.preference_test(np.tile([100, 0, 0], (6, 1))) < 0.05
    for tests in range(1, 40):
        fewest = st.fewest_raters(tests)
        assert tests * 2 / 2**fewest < 0.05 <= tests * 2 / 2 ** (fewest - 1)
    one, three = (st.win_rate_by_rater(np.tile([100, 0, 0], (raters, 1))) for raters in (1, 3))
    assert (one.low, one.high) == (0.0, 1.0) and three.low < 0.5
    fitted = st.strengths(np.tile([9, 1, 0], (5, 1, 1)), 2, draws=100)
    assert fitted.strengths[0] > 1 and all(math.isnan(value) for value in (*fitted.low, *fitted.high, *fitted.first))


def test_strengths_of_few_leaning_raters_have_intervals_that_hold():
    inside = []
    for seed in range(80):
        found = st.strengths(leaning_crowd(8, 20, lean=1.0, preference=0.0, seed=seed)[:, None], 2, draws=300, seed=seed)
        inside.append(found.low[0] <= 0 <= found.high[0])
    assert np.mean(inside) >= 0.9


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


@pytest.mark.parametrize("counts", [[1.0, 0.0, 0.0], [1e6, 1.0, 1.0], [0.0, 3.0, 1e5]])
def test_few_and_very_many_votes_have_the_closed_form_of_theirs_and_the_virtual_ones(counts):
    fitted = st.fit_davidson(np.array([[counts]]), 2)[0]
    first, tie, second = (count + st.VIRTUAL_VOTES for count in counts)
    assert fitted[0] - fitted[1] == pytest.approx(math.log(first / second), rel=1e-3)
    assert fitted[2] == pytest.approx(math.log(tie / math.sqrt(first * second)), rel=1e-3)


def test_intervals_of_few_raters_have_hesterbergs_percentiles():
    votes = leaning_crowd(8, 20, lean=1.0, preference=0.3, seed=0)[:, None]
    found = st.strengths(votes, 2, draws=300, seed=3)
    drawn = np.random.default_rng(3).multinomial(8, np.full(8, 1 / 8), size=300)
    sampled = st.fit_davidson(np.einsum("dr,rpo->dpo", drawn, votes), 2)[:, 0]
    tail = 0.0057375  # of the normal distribution below sqrt(8 / 7) times Student's 2.5 % quantile with 7 degrees of freedom, -2.3646
    assert (found.low[0], found.high[0]) == pytest.approx(tuple(np.quantile(sampled, [tail, 1 - tail])), rel=1e-3)


def test_a_method_that_never_loses_has_a_finite_strength():
    fitted = st.fit_davidson(np.array([[[30, 0, 0]]]), 2)[0]
    assert np.isfinite(fitted).all() and fitted[0] > 2


def test_two_methods_that_never_met_are_told_apart_by_the_third():
    first, second, third, _ = st.fit_davidson(np.array([[[30, 5, 10], [0, 0, 0], [30, 5, 10]]]), 3)[0]
    assert first - second == pytest.approx(second - third) and first - second > 0.5


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
    assert st.ordinal_alpha(np.array([[4, 0, 0], [0, 4, 0], [0, 0, 4]])) == pytest.approx(1)
    assert abs(st.ordinal_alpha(generator.multinomial(6, [1 / 3] * 3, size=3000))) < 0.02
    # Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", example A: two observers, binary data, alpha = .095.
    first, second = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    units = np.zeros((10, 3), int)
    for row, pair in enumerate(zip(first, second, strict=True)):
        for value in pair:
            units[row, 2 * value] += 1
    assert st.ordinal_alpha(units) == pytest.approx(0.095, abs=5e-4)


def test_a_value_that_one_vote_has_counts_in_alpha():
    assert st.ordinal_alpha(np.array([[1, 1, 0], [0, 2, 0]])) == pytest.approx(0)  # 1 - (4 - 1) 1 / (1 3)


def test_alpha_lies_in_its_interval():
    units = np.random.default_rng(0).multinomial(5, [0.6, 0.3, 0.1], size=30) + np.eye(3, dtype=int)[np.arange(30) % 3] * 3
    found = st.alpha_interval(units, draws=200)
    assert found.low < found.value < found.high < 1 and found.high - found.low < 0.5


def test_alpha_without_two_votes_on_a_unit_or_without_variation_is_unknown():
    assert math.isnan(st.ordinal_alpha(np.array([[1, 0, 0], [0, 0, 1]])))
    assert math.isnan(st.alpha_interval(np.array([[3, 0, 0], [2, 0, 0]])).value)


def test_position_bias_is_found_and_not_imagined():
    share, p_value = st.position_bias(np.tile([13, 5, 7], (20, 1)))
    assert share.value == 0.65 and p_value < 0.001
    habits = np.array([[20, 0, 0]] * 12 + [[0, 0, 20]] * 8)  # twenty people, each with a habit: no sign of a common one
    assert st.position_bias(habits)[1] > 0.3


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


# ---- the same figures by formulas written again here

BY_RATER = np.array([[5, 1, 2], [0, 0, 0], [3, 3, 1], [1, 0, 6], [4, 2, 2]])  # the second did not vote
ROWS = BY_RATER[[0, 2, 3, 4]]


def wilson(share, votes):
    z = 1.959963984540054
    middle, half = share + z * z / (2 * votes), z * math.sqrt(share * (1 - share) / votes + (z / (2 * votes)) ** 2)
    return pytest.approx(tuple((middle + sign * half) / (1 + z * z / votes) for sign in (-1, 1)), rel=1e-9)


def test_votes_of_several_raters_are_worth_what_cochrans_variance_says():
    """Share 16 of 30; residuals of the four who voted 5.5 - 8 p, 4.5 - 7 p, 1 - 7 p, 5 - 8 p."""
    share = 16 / 30
    residuals = [5.5 - 8 * share, 4.5 - 7 * share, 1 - 7 * share, 5 - 8 * share]
    effect = 4 / 3 * sum(one * one for one in residuals) / 30**2 / (share * (1 - share) / 30)
    assert st.design_effect(BY_RATER) == st.design_effect(ROWS) == pytest.approx(effect) and effect > 1.1
    wider = 3.182446305284263 / 1.959963984540054  # Student's quantile with 3 degrees of freedom over the normal one
    found = st.win_rate_by_rater(BY_RATER)
    assert (found.value, st.win_rate(BY_RATER.sum(0).tolist()).value) == pytest.approx((share, share))
    assert (found.low, found.high) == wilson(share, 30 / effect / wider**2)
    alone = st.win_rate([13, 6, 11])
    assert (alone.low, alone.high) == wilson(share, 30)
    ten = st.win_rate_by_rater(np.array([[1, 0, 0]] * 6 + [[0, 0, 1]] * 4))
    assert (ten.low, ten.high) == wilson(0.6, 9 / (2.2621571627409915 / 1.959963984540054) ** 2)
    two = st.win_rate_by_rater(np.array([[2, 0, 2], [2, 0, 2], [0, 0, 0]]))
    assert (two.low, two.high) == wilson(0.5, 8 / (12.706204736174698 / 1.959963984540054) ** 2)


@pytest.mark.parametrize(
    ("votes", "effect"),
    [
        ([[3, 1, 2]], 6),  # one rater is one vote
        ([[3, 1, 2], [0, 0, 0]], 6),
        ([[4, 0, 0], [2, 0, 0]], 3),  # all alike
        ([[0, 4, 0], [0, 2, 0]], 3),
        ([[2, 0, 2], [3, 0, 3]], 1),  # closer together than chance
        ([[4, 0, 0], [0, 0, 4]], 8),
        ([[4, 0, 0], [0, 4, 0]], 8 / 3),
        ([[0, 0, 0]], 1),
        ([[3, 1, 0], [2, 0, 0]], 1),
        ([[1, 0, 0]] * 6 + [[0, 0, 1]] * 4, 10 / 9),  # a vote each
    ],
)
def test_design_effects_by_hand(votes, effect):
    assert st.design_effect(np.array(votes)) == pytest.approx(effect)


def test_a_rater_without_votes_and_a_default_seed_change_no_p():
    habits = np.tile([[3, 1, 1], [1, 1, 2], [2, 0, 1]], (14, 1))
    with_idle = np.concatenate([habits, np.zeros((3, 3), int)])
    p = st.preference_test(habits)
    assert 0 < p < 1 and st.preference_test(with_idle) == p == st.preference_test(habits, seed=0) != st.preference_test(habits, seed=1)
    assert st.position_bias(habits) == st.position_bias(habits, seed=0) and st.position_bias(habits, seed=1)[1] != p
    assert st.position_bias(habits)[1] == p and st.position_bias(habits)[0] == st.win_rate_by_rater(habits * [1, 0, 1])


@pytest.mark.parametrize("prior", [0.0, 0.5, 2.0])
def test_bradley_terry_is_the_peak_of_the_posterior(prior):
    wins = np.array([[0, 6, 4.5], [2, 0, 3], [1.5, 5, 0]])

    def loss(strengths):
        pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
        against_zero = sum(math.log1p(math.exp(-s)) + math.log1p(math.exp(s)) for s in strengths)
        return sum(wins[i, j] * math.log1p(math.exp(strengths[j] - strengths[i])) for i, j in pairs) + prior * against_zero

    best = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-8}).x
    assert st.bradley_terry(wins, prior=prior) == pytest.approx(best - best.mean(), abs=2e-4)


def test_every_pair_that_met_has_a_tenth_of_a_vote_more_for_each_outcome():
    fitted = st.fit_davidson(np.array([[[30, 0, 0]], [[0, 3, 1]]]), 2)
    assert fitted[:, 0] - fitted[:, 1] == pytest.approx([math.log(30.1 / 0.1), math.log(0.1 / 1.1)], rel=1e-4)
    assert fitted[:, 2] == pytest.approx([math.log(0.1 / math.sqrt(30.1 * 0.1)), math.log(3.1 / math.sqrt(0.1 * 1.1))], rel=1e-3)
    assert fitted[:, :2].sum(1) == pytest.approx([0, 0], abs=1e-9)


def test_strengths_by_default_are_2000_draws_of_seed_0_from_six_raters_on():
    votes = np.array([[4, 1, 1], [3, 0, 2], [2, 2, 2], [5, 1, 0], [1, 1, 3], [4, 0, 2]])[:, None]
    found = st.strengths(votes, 2)
    assert found == st.strengths(votes, 2, draws=2000, seed=0) and found.low[0] < found.strengths[0] < found.high[0]
    drawn = np.random.default_rng(0).multinomial(6, np.full(6, 1 / 6), size=2000)
    sampled = st.fit_davidson(np.einsum("dr,rpo->dpo", drawn, votes), 2)
    assert found.first == pytest.approx(((sampled[:, 0] >= sampled[:, 1]).mean(), (sampled[:, 0] < sampled[:, 1]).mean()))
    assert (found.strengths, found.tie) == (
        tuple(st.fit_davidson(votes.sum(0)[None], 2)[0, :2]),
        st.fit_davidson(votes.sum(0)[None], 2)[0, 2],
    )
    assert all(math.isnan(end) for end in (*st.strengths(votes[:5], 2).low, *st.strengths(votes[:5], 2).first))


def test_the_interval_of_alpha_is_the_percentiles_of_500_draws_of_its_units():
    units = np.random.default_rng(1).multinomial(3, [0.5, 0.3, 0.2], size=12)
    units[3] = [1, 0, 0]  # one vote: no unit
    kept = units[units.sum(1) > 1]
    index = np.random.default_rng(0).integers(11, size=(500, 11))
    ends = np.nanquantile([st.ordinal_alpha(kept[row]) for row in index], [0.025, 0.975])
    found = st.alpha_interval(units)
    assert (found.low, found.high) == pytest.approx(tuple(ends)) and found.value == st.ordinal_alpha(kept) == st.ordinal_alpha(units)
    assert found == st.alpha_interval(units, draws=500, seed=0)
    pair = st.alpha_interval(np.array([[2, 0, 0], [0, 1, 1]]), draws=20)
    assert math.isfinite(pair.value) and math.isfinite(pair.low)


@pytest.mark.parametrize("votes", [5, 6, 40, 194, 1000])
def test_the_rate_that_votes_find_is_the_smallest_that_needs_no_more(votes):
    rate = st.detectable_rate(votes)
    assert st.votes_needed(rate) == votes < st.votes_needed(rate - 1e-9)
    assert st.detectable_rate(2 * votes, design_effect=2.0) == pytest.approx(rate, abs=1e-3)


def test_what_power_asks_for():
    assert [st.votes_needed(rate) for rate in (0.4, 0.55, 0.7, 0.999)] == [194, 783, 47, 5]
    assert st.votes_needed(0.6, design_effect=1.5) == 291  # 1.5 times 193.85
    assert [math.isnan(st.detectable_rate(votes)) for votes in (-1, 0, 1, 4, 5)] == [True, True, True, True, False]
