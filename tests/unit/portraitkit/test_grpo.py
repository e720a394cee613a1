"""Advantages and losses, against numbers worked out by hand and torch's own distributions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from dpg.sampler import Sampler
from dpg.sde import log_ratio
from portraitkit.grpo import (
    clipped_surrogate,
    divergence_surrogate,
    gaussian_kl,
    group_advantages,
    guard_log_ratio,
    local_advantages,
    neighbor_log_ratio,
    normalise_then_sum,
    per_reward_advantages,
    quasi_norm_weights,
)

NAN, INF, HALF = math.nan, math.inf, math.sqrt(0.5)


def reals(*values):
    return torch.tensor(values, dtype=torch.float64)


def ints(*values):
    return torch.tensor(values)


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_advantages_are_standardised_inside_each_group_in_any_order():
    rewards, groups = reals(1, 10, 2, 30, 3, 20), ints(7, 2, 7, 2, 7, 2)
    advantages = group_advantages(rewards, groups, eps=0.0)
    close(advantages.values, reals(-1, -1, 0, 1, 1, 0))
    assert (advantages.zero_groups, advantages.unscorable) == (0, 0)
    close(group_advantages(rewards, groups, eps=1.0).values, reals(-1 / 2, -10 / 11, 0, 10 / 11, 1 / 2, 0))


def test_equal_rewards_below_zero_are_a_group_without_spread():
    advantages = group_advantages(reals(-0.1, -0.1, -0.1, -0.3, -0.2, -0.1), ints(0, 0, 0, 1, 1, 1), eps=0.0)
    close(advantages.values, reals(0, 0, 0, -1, 0, 1))
    assert advantages.zero_groups == 1


@pytest.mark.parametrize("missing", [NAN, INF, -INF])
def test_unscorable_rewards_are_out_of_the_statistics(missing):
    advantages = group_advantages(reals(1, missing, 3, 5, 7), ints(0, 0, 0, 1, 1), eps=0.0)
    close(advantages.values, reals(-HALF, 0, HALF, -HALF, HALF))
    assert (advantages.zero_groups, advantages.unscorable) == (0, 1)
    pooled = group_advantages(reals(1, missing, 3, 5, 7), ints(0, 0, 0, 1, 1), eps=0.0, global_std=True)
    close(pooled.values, reals(-1, 0, 1, -1, 1) / math.sqrt(5))  # of 1, 3, 5, 7


def test_groups_without_spread_get_exactly_nothing_and_are_counted():
    constant, alone, hopeless, normal = [0.1] * 3, [5.0, NAN], [NAN, INF], [0.0, 1.0]
    rewards = torch.tensor([*constant, *alone, *hopeless, *normal], dtype=torch.float32)
    groups = ints(0, 0, 0, 1, 1, 2, 2, 3, 3)
    for global_std in (False, True):
        advantages = group_advantages(rewards, groups, eps=0.0, global_std=global_std)
        assert advantages.values.dtype == torch.float32
        assert advantages.values[:7].eq(0).all()
        assert advantages.values[7] < 0 < advantages.values[8]
        assert (advantages.zero_groups, advantages.unscorable) == (3, 3)


def test_nothing_at_all_gives_no_advantages():
    advantages = group_advantages(torch.zeros(0), torch.zeros(0, dtype=torch.int64), global_std=True)
    assert (len(advantages.values), advantages.zero_groups, advantages.unscorable) == (0, 0, 0)
    hopeless = group_advantages(reals(NAN, NAN), ints(0, 0), global_std=True)
    assert hopeless.values.tolist() == [0, 0] and hopeless.zero_groups == 1


def test_global_std_is_the_deviation_of_the_rewards_as_they_are():
    """Flow-GRPO's figures (`PerPromptStatTracker(global_std=True)`, numpy's ddof 0); TRL's batch deviation has ddof 1: .0862."""
    rewards, groups = reals(1, 2, 11, 12), ints(0, 0, 1, 1)
    close(group_advantages(rewards, groups, eps=0.0, global_std=True).values, reals(-0.5, 0.5, -0.5, 0.5) / math.sqrt(25.25))
    assert group_advantages(rewards, groups, global_std=True).values.tolist() == pytest.approx([-0.0995, 0.0995] * 2, abs=5e-5)
    close(group_advantages(rewards, groups, eps=0.0).values, reals(-HALF, HALF, -HALF, HALF))


def test_advantages_are_clipped_on_both_sides():
    rewards, groups = torch.zeros(101, dtype=torch.float64), torch.zeros(101, dtype=torch.int64)
    rewards[50] = 1
    for sign in (1, -1):
        assert group_advantages(sign * rewards, groups).values[50] == sign * 5
        assert group_advantages(sign * rewards, groups, clip=2.0).values[50] == sign * 2
        assert abs(group_advantages(sign * rewards, groups, clip=50.0).values[50]) > 9


def test_a_large_offset_does_not_drown_small_differences():
    rewards = torch.tensor([10_000.0, 10_000.001953125, 10_000.00390625], dtype=torch.float32)
    values = group_advantages(rewards, ints(0, 0, 0), eps=0.0).values
    torch.testing.assert_close(values, torch.tensor([-1.0, 0.0, 1.0]), rtol=1e-5, atol=1e-5)


@given(st.lists(st.tuples(st.floats(-1, 1, width=32), st.integers(0, 3)), min_size=1, max_size=30), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_advantages_sum_to_zero_and_follow_a_shuffle(samples, random):
    rewards, groups = reals(*(reward for reward, _ in samples)), ints(*(group for _, group in samples))
    values = group_advantages(rewards, groups, clip=100.0).values
    for group in set(groups.tolist()):
        assert abs(values[groups == group].sum()) < 1e-9
    order = list(range(len(samples)))
    random.shuffle(order)
    close(group_advantages(rewards[order], groups[order], clip=100.0).values, values[order])


def test_each_reward_is_standardised_before_the_weighted_sum():
    parts = {"large": reals(0, 200, 0, 1), "small": reals(0.1, 0.3, 5, 4)}
    total = normalise_then_sum(parts, ints(0, 0, 1, 1), {"large": 1.0, "small": 0.5}, eps=0.0)
    close(total, HALF * reals(-1.5, 1.5, -0.5, 0.5))


def test_a_missing_part_adds_nothing_and_a_sample_without_parts_is_unscorable():
    parts = {"a": reals(0, 2, NAN, NAN), "b": reals(1, NAN, 3, NAN)}
    total = normalise_then_sum(parts, ints(0, 0, 0, 0), {"a": 1.0, "b": 10.0}, eps=0.0)
    close(total[:3], HALF * reals(-11, 1, 10))
    assert total[3].isnan()
    assert normalise_then_sum({"a": torch.zeros(2)}, ints(0, 0), {"a": 1.0}).dtype == torch.float32
    with pytest.raises(ValueError, match="at least one reward"):
        normalise_then_sum({}, ints(0, 0), {})


CANCEL = {"a": reals(0, 1, 2, 3), "b": reals(3, 2.1, 1, 0)}  # nearly, in one group
AGREE = {"a": reals(0, 1, 2, 3), "b": reals(0, 1, 2, 3)}


@pytest.mark.parametrize(("scale", "values"), [("mixgrpo", [-0.031, 0.053, -0.015, -0.007]), ("gdpo", [-0.024, 0.041, -0.012, -0.005])])
def test_rewards_that_cancel_out_earn_next_to_nothing(scale, values):
    """Figures of the sources' code: MixGRPO's `advantage_aggr`, and TRL's `normalize_then_sum` with a group of agreeing rewards beside."""
    parts = {name: torch.cat([CANCEL[name], AGREE[name]]) for name in CANCEL}
    found = per_reward_advantages(parts, ints(0, 0, 0, 0, 1, 1, 1, 1), {"a": 1.0, "b": 1.0}, scale)
    assert found.values[:4].tolist() == pytest.approx(values, abs=6e-4)
    # by hand: z-scores of both with ddof 1, summed; their deviation over all eight
    z = {name: torch.cat([(part[name] - part[name].mean()) / part[name].std() for part in (CANCEL, AGREE)]) for name in CANCEL}
    total = z["a"] + z["b"]
    torch.testing.assert_close(found.values, total if scale == "mixgrpo" else total / total.std(), rtol=3e-4, atol=1e-6)


def test_what_is_added_to_a_deviation_is_1e_4_and_with_mixgrpo_1e_8():
    rewards, groups = reals(0, 1e-4 * math.sqrt(2)), ints(0, 0)  # whose deviation is 1e-4
    close(group_advantages(rewards, groups).values, reals(-HALF, HALF) / 2)
    close(local_advantages(rewards[:, None], rewards, groups)[:, 0], reals(-HALF, HALF) / 2)
    close(normalise_then_sum({"a": rewards}, groups, {"a": 1.0}), reals(-HALF, HALF) / 2)
    close(group_advantages(rewards, groups, global_std=True).values, reals(-HALF, HALF) / (HALF + 1))
    close(per_reward_advantages({"a": rewards}, groups, {"a": 1.0}, "gdpo").values, reals(-HALF, HALF) / 2 / (0.5 + 1e-4))
    close(per_reward_advantages({"a": rewards}, groups, {"a": 1.0}, "mixgrpo").values, reals(-HALF, HALF) / (1 + 1e-4))


@pytest.mark.parametrize("scale", ["mixgrpo", "gdpo"])
def test_what_cannot_be_scored_or_does_not_differ_gets_nothing_from_any_reward(scale):
    parts = {"a": reals(0.1, 0.1, 0.1, 0, 1, NAN), "b": reals(0.7, 0.7, 0.7, 5, NAN, NAN)}
    found = per_reward_advantages(parts, ints(0, 0, 0, 1, 1, 1), {"a": 1.0, "b": 1.0}, scale)
    assert found.values[[0, 1, 2, 5]].eq(0).all() and found.values[3] < 0 < found.values[4]
    assert (found.zero_groups, found.unscorable) == (1, 1)
    assert per_reward_advantages({"a": reals(0, 1)}, ints(0, 0), {"a": 100.0}, "mixgrpo").values.tolist() == [-5, 5]
    alone = per_reward_advantages({"a": reals(3, NAN)}, ints(0, 0), {"a": 1.0}, scale)
    assert alone.values.tolist() == [0, 0] and (alone.zero_groups, alone.unscorable) == (1, 1)


def test_a_cell_that_answers_for_everything_gets_the_advantage_of_its_sample():
    rewards, groups = reals(1, 2, 6, NAN, 4, 4), ints(0, 0, 0, 0, 1, 1)
    whole = group_advantages(rewards, groups).values
    close(local_advantages(rewards[:, None], rewards, groups)[:, 0], whole)
    share = noise(6, 3)
    split = local_advantages(torch.cat([share, (rewards[:, None] - share.sum(1, keepdim=True))], 1), rewards, groups, clip=1e9)
    close(split.sum(1), whole)


def test_cells_are_compared_inside_their_group_in_units_of_the_reward():
    rewards, groups = reals(1, 3, 10, 30), ints(0, 0, 1, 1)
    credit = reals(0, 1, 4, 2, 5, 5, 3, 1).view(4, 2)
    small, large = math.sqrt(2), math.sqrt(200)
    want = torch.stack([reals(-2, -0.5) / small, reals(2, 0.5) / small, reals(1, 2) / large, reals(-1, -2) / large])
    close(local_advantages(credit, rewards, groups, eps=0.0), want)
    assert local_advantages(credit, rewards, groups, clip=0.1).abs().max() == 0.1


def test_cells_of_unscorable_samples_and_of_groups_without_spread_get_nothing():
    rewards, groups = reals(2, 2, 1, NAN, 3), ints(0, 0, 1, 1, 1)
    values = local_advantages(reals(0, 2, 1, 1e6, 3)[:, None], rewards, groups, eps=0.0)[:, 0]
    close(values, reals(0, 0, -HALF, 0, HALF))


def test_the_gradient_at_ratio_one_is_the_plain_policy_gradient():
    log_ratio, advantages = torch.zeros(3, dtype=torch.float64, requires_grad=True), reals(2, -3, 0)
    loss = clipped_surrogate(log_ratio, advantages, 1e-5)
    close(loss.detach(), -advantages)
    loss.sum().backward()
    close(log_ratio.grad, -advantages)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.3, 2.0, -2.4, 0.0),  # already far enough towards a good sample
        (0.7, -2.0, 1.6, 0.0),  # already far enough from a bad one
        (1.3, -2.0, 2.6, 2.6),  # moved the wrong way: never clipped
        (0.7, 2.0, -1.4, -1.4),
        (1.1, 2.0, -2.2, -2.2),  # inside the range
        (0.9, -2.0, 1.8, 1.8),
    ],
)
def test_clipping_stops_only_what_went_far_enough(ratio, advantage, loss, gradient):
    log_ratio = reals(math.log(ratio)).requires_grad_()
    got = clipped_surrogate(log_ratio, reals(advantage), 0.2)
    close(got.detach(), reals(loss))
    got.sum().backward()
    close(log_ratio.grad, reals(gradient))


def test_each_cell_is_clipped_on_its_own():
    log_ratio = reals(1.3, 1.1, 0.7, 1.0).log().view(2, 2)
    close(clipped_surrogate(log_ratio, reals(1, 1, -1, -1).view(2, 2), 0.2), reals(-1.2, -1.1, 0.8, 1.0).view(2, 2))


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "divergence", "blocked"),
    [
        (0.1, 2.0, 0.3, True),  # likelier and better, but already too far
        (-0.1, -2.0, 0.3, True),
        (0.1, 2.0, 0.2, False),  # as far as it may go
        (0.1, -2.0, 0.3, False),  # too far, on the way back
        (-0.1, 2.0, 0.3, False),
        (0.0, 2.0, 0.3, False),
    ],
)
def test_only_what_is_too_far_and_goes_farther_is_blocked(log_ratio, advantage, divergence, blocked):
    ratio = reals(log_ratio).requires_grad_()
    loss, found = divergence_surrogate(ratio, reals(advantage), reals(divergence), 0.2)
    loss.sum().backward()
    assert found.tolist() == [blocked]
    assert loss.item() == ratio.grad.item() == pytest.approx(0.0 if blocked else -advantage * math.exp(log_ratio))


@pytest.mark.parametrize("local", [False, True])
def test_neighbors_are_leapt_to_by_their_distance(local):
    draw = torch.Generator().manual_seed(0)
    candidates = torch.randn(2, 5, 3, 4, generator=draw, dtype=torch.float64)
    old = candidates[:, 1]
    new = (old + 0.1 * torch.randn(2, 3, 4, generator=draw, dtype=torch.float64)).requires_grad_()
    found = neighbor_log_ratio(new, old, candidates, keep=2 if local else 1)
    dims = (3,) if local else (2, 3)

    def policy(x):
        weights = torch.exp(-((candidates - x[:, None]) ** 2).mean(dims))
        return weights / weights.sum(1, keepdim=True)

    torch.testing.assert_close(found, (policy(new) / policy(old)).log())
    assert found.shape == ((2, 5, 3) if local else (2, 5)) and not neighbor_log_ratio(old, old, candidates).any()
    here = old.clone().requires_grad_()
    worth = reals(0.7, -0.2, 0.5, -0.4, -0.6)  # they add up to 0: then the gradient is the sum of the candidates by their worth
    (worth * neighbor_log_ratio(here, old, candidates).exp()).sum().backward()
    torch.testing.assert_close(here.grad, 2 * (worth[:, None, None] * candidates).sum(1) / 12)


def test_the_quasi_norm_counts_flat_groups_for_less():
    flat, peaked, none = [1.0, -1.0, 1.0, -1.0], [2.0, -math.sqrt(4 / 3), 0.0, -math.sqrt(4 / 3)], [0.0, 0.0]
    weights = quasi_norm_weights(reals(*flat, *peaked, *none), ints(*[0] * 4, *[1] * 4, 2, 2), 0.8)
    for group, found in ((flat, weights[:4]), (peaked, weights[4:8])):
        assert found.tolist() == pytest.approx([sum(abs(a) ** 0.8 for a in group) ** (-1 / 0.8)] * 4)
    assert weights[0] * math.hypot(*flat) < weights[4] * math.hypot(*peaked) and weights[8:].tolist() == [0, 0]


@pytest.mark.parametrize("std", [0.3, 2.0, "each"])
def test_kl_is_that_of_torch_averaged_over_dimensions(std):
    mean, reference = noise(4, 3, 5), noise(4, 3, 5, seed=1)
    std = noise(3, 5, seed=2).abs() + 0.1 if std == "each" else std
    want = kl_divergence(Normal(mean, std), Normal(reference, std)).flatten(1).mean(1)
    close(gaussian_kl(mean, reference, std), want)


@pytest.mark.parametrize("std", [0.05, 0.7])
def test_the_guarded_log_ratio_has_no_bias_and_no_noise_level(std):
    """Of `x = old + std e` it is `mean(e (new - old))`: zero on average, and the same at every noise level."""
    old, shift, e = noise(4, 2, 3), noise(4, 2, 3, seed=1), noise(4, 2, 3, seed=2)
    x = old + std * e
    log_ratio = (Normal(old + shift, std).log_prob(x) - Normal(old, std).log_prob(x)).flatten(1).mean(1)
    close(guard_log_ratio(log_ratio, old, old + shift, std), (e * shift).flatten(1).mean(1))


@pytest.mark.parametrize("sampler", ["flow_sde", "cps", "dance_sde"])
def test_the_guarded_log_ratio_is_unbiased_with_every_sampler(sampler):
    """cps's own log-ratio carries 2 std^2, the KL that is added to it does not: guarded as it is its mean was 4.3e-4, spread 2.2e-5."""
    x, v, z = (noise(4096, 64, seed=seed) for seed in (3, 4, 5))
    old, std = Sampler(sampler, 0.7).mean_std(x, v, 0.25, 0.11)
    new, _ = Sampler(sampler, 0.7).mean_std(x, v + 0.05, 0.25, 0.11)
    guarded = guard_log_ratio(log_ratio(new, old, std, z, sampler=sampler, gaussian=True), old, new, float(std[0]))
    close(guarded, (z * (new - old)).mean(1))
    assert abs(guarded.mean()) < 4 * guarded.std() / 64 and 3e-4 < guarded.std() < 3e-3
