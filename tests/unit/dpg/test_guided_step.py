"""Guidance over every sampler, and the total noise of a step with and without it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noise import NOISY, tensors

from dpg.guidance import anchor_velocity, lambda_schedule, x_star
from dpg.sampler import Sampler
from dpg.sde import SAMPLERS, log_ratio, sde_step, step_coefficients


def schedule(steps: int) -> list[float]:
    return [1 - i / steps for i in range(steps)] + [0.0]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_lam_zero_is_the_plain_step(sampler: str) -> None:
    x, v, z, anchor = tensors("x", "v", "z", "anchor")
    plain = sde_step(x, v, 0.8, 0.6, sampler=sampler, noise=z)
    guided = sde_step(x, v, 0.8, 0.6, sampler=sampler, noise=z, anchor=anchor, lam=0.0)
    for one, other in zip(plain, guided, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_lam_one_is_x_star_for_any_noise_and_velocity(sampler: str) -> None:
    x, v, other_v, z, anchor = tensors("x", "v", "other_v", "z", "anchor")
    expected = x_star(x, anchor, 0.8, 0.6)
    for velocity in (v, 100 * other_v):
        step = sde_step(x, velocity, 0.8, 0.6, sampler=sampler, noise=50 * z, anchor=anchor, lam=1.0)
        assert torch.equal(step.x_next, expected)
        assert step.std.abs().max() == 0 and step.log_prob.tolist() == [0, 0, 0]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_lam_one_all_the_way_ends_at_the_anchor_to_the_bit(sampler: str) -> None:
    x, v, anchor = tensors("x", "v", "anchor")
    levels = schedule(7)
    for sigma, sigma_next in zip(levels, levels[1:], strict=False):
        x = sde_step(x, v, sigma, sigma_next, sampler=sampler, anchor=anchor, lam=1).x_next
    assert torch.equal(x, anchor)


@pytest.mark.parametrize("sampler", NOISY)
@pytest.mark.parametrize("lam", [0.1, 0.5, 0.95])
def test_mixed_noise_form_equals_new_mean_form(sampler: str, lam: float) -> None:
    x, v, z, anchor = tensors("x", "v", "z", "anchor", dtype=torch.float64)
    mean, std = Sampler(sampler).mean_std(x, v, 0.8, 0.6)
    z_anchor = (x_star(x, anchor, 0.8, 0.6) - mean) / std
    expected = mean + std * (lam * z_anchor + (1 - lam) * z)
    step = sde_step(x, v, 0.8, 0.6, sampler=sampler, noise=z, anchor=anchor, lam=lam)
    torch.testing.assert_close(step.x_next, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_anchor_velocity_without_noise_is_euler_for_every_lam(sampler: str, lam: float) -> None:
    x, anchor = tensors("x", "anchor", dtype=torch.float64)
    v = anchor_velocity(x, anchor, 0.8)
    step = sde_step(x, v, 0.8, 0.6, sampler=sampler, eta=0, anchor=anchor, lam=lam)
    torch.testing.assert_close(step.x_next, x + (0.6 - 0.8) * v, rtol=0, atol=1e-14)


@pytest.mark.parametrize("sampler", NOISY)
@pytest.mark.parametrize("lam", [0.0, 0.4, 0.9])
def test_empirical_mean_and_std_of_the_guided_step(sampler: str, lam: float) -> None:
    draws = 40_000
    x, v, anchor = (torch.full((1, 2), number, dtype=torch.float64) for number in (0.3, -1.2, 2.0))
    mean, std = Sampler(sampler).mean_std(x, v, 0.7, 0.5)
    pull = lam * (x_star(x, anchor, 0.7, 0.5) - mean)
    step = sde_step(
        x.expand(draws, 2),
        v.expand(draws, 2),
        0.7,
        0.5,
        sampler=sampler,
        anchor=anchor,
        lam=lam,
        generator=torch.Generator().manual_seed(3),
    )
    moved = step.x_next - mean
    expected_std = (1 - lam) * std.item()
    torch.testing.assert_close(moved.mean(0), pull[0], rtol=0, atol=4.5 * expected_std / math.sqrt(draws))
    assert moved.std(0).tolist() == pytest.approx([expected_std] * 2, rel=4.5 / math.sqrt(2 * draws))


def test_own_mean_as_target_only_attenuates_the_noise() -> None:
    x, v, z, other_v = tensors("x", "v", "z", "other_v", dtype=torch.float64)
    mean, std = Sampler().mean_std(x, v, 0.8, 0.6)
    step = sde_step(x, v, 0.8, 0.6, noise=z, target=mean, lam=0.9)
    torch.testing.assert_close(step.x_next, mean + 0.1 * std * z, rtol=0, atol=1e-14)
    again = sde_step(x, other_v, 0.8, 0.6, x_next=step.x_next, target=mean, lam=0.9).log_prob - step.log_prob
    free = log_ratio(Sampler().mean_std(x, other_v, 0.8, 0.6)[0], mean, std, z)
    torch.testing.assert_close(again, free, rtol=1e-9, atol=1e-10)


# total noise of the step under the ideal velocity


@pytest.mark.parametrize("sampler", ["flow_sde", "dance_sde"])
@given(sigma=st.floats(0.05, 0.99), share=st.floats(0, 0.99), lam=st.floats(0, 1), eta=st.floats(0.05, 1.2))
@settings(max_examples=60, deadline=None)
def test_variance_formula(sampler: str, sigma: float, share: float, lam: float, eta: float) -> None:
    sigma_next = sigma * share
    size, rate = sigma - sigma_next, eta**2 * (sigma / (1 - sigma) if sampler == "flow_sde" else 1)
    a = rate / (2 * sigma)
    on_x, on_v, std = (float(number) for number in step_coefficients(sigma, sigma_next, sampler, eta))
    assert on_x * (1 - sigma) - on_v == pytest.approx(1 - sigma_next, abs=1e-9 * (1 + a))  # x0 keeps its weight
    own_eps = on_x * sigma + on_v
    total = ((1 - lam) * own_eps + lam * sigma_next) ** 2 + ((1 - lam) * std) ** 2
    expected = (sigma_next - (1 - lam) * a * size) ** 2 + (1 - lam) ** 2 * rate * size
    assert total == pytest.approx(expected, rel=1e-9, abs=1e-12)
    plain = own_eps**2 + std**2
    assert plain - sigma_next**2 == pytest.approx((2 * a + a**2) * size**2, rel=1e-6, abs=1e-9 * (1 + a**2))


@given(sigma=st.floats(0.05, 1), share=st.floats(0, 1), eta=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_cps_has_exactly_the_noise_of_its_level(sigma: float, share: float, eta: float) -> None:
    sigma_next = sigma * share
    on_x, on_v, std = (float(number) for number in step_coefficients(sigma, sigma_next, "cps", eta))
    assert (on_x * sigma + on_v) ** 2 + std**2 == pytest.approx(sigma_next**2, abs=1e-12)
    assert on_x * (1 - sigma) - on_v == pytest.approx(1 - sigma_next, abs=1e-12)


@pytest.mark.parametrize("sampler", NOISY)
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.9])
def test_variance_by_monte_carlo(sampler: str, lam: float) -> None:
    draws, sigma, sigma_next = 60_000, 0.7, 0.5
    generator = torch.Generator().manual_seed(11)
    eps, z = (torch.randn(draws, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    x0 = torch.full((draws, 1), 0.4, dtype=torch.float64)
    x = (1 - sigma) * x0 + sigma * eps
    step = sde_step(x, eps - x0, sigma, sigma_next, sampler=sampler, noise=z, anchor=x0, lam=lam)
    on_x, on_v, std = (float(number) for number in step_coefficients(sigma, sigma_next, sampler))
    expected = ((1 - lam) * (on_x * sigma + on_v) + lam * sigma_next) ** 2 + ((1 - lam) * std) ** 2
    assert step.x_next.var().item() == pytest.approx(expected, rel=4.5 * math.sqrt(2 / draws))
    assert step.x_next.mean().item() == pytest.approx((1 - sigma_next) * 0.4, abs=0.01)
    if sampler == "flow_sde":
        over = {0.0: 1, 0.5: -1, 0.9: -1}[lam]  # lam = 0 over-noises, and this step under-noises between
        assert (expected - sigma_next**2) * over > 0


@pytest.mark.parametrize(("steps", "shift", "pull"), [(28, 3.0, 0.05), (10, 3.0, 0.13), (28, 1.0, 0.10), (10, 1.0, 0.26)])
def test_pull_and_noise_of_three_drawn_steps(steps: int, shift: float, pull: float) -> None:
    """5 % and about 12 % of the way to the anchor need FLUX's shifted levels; uniform ones pull twice as far."""
    levels = [shift * level / (1 + (shift - 1) * level) for level in schedule(steps)]
    lambdas = lambda_schedule(steps)
    thirds = [range(k * steps // 3, min((k + 1) * steps // 3, steps - 1)) for k in range(3)]
    pulls = [sum(lambdas[i] * (1 - levels[i + 1] / levels[i]) for i in third) / len(third) for third in thirds]
    noise = [sum(1 - lambdas[i] for i in third) / len(third) for third in thirds]
    assert sum(pulls) == pytest.approx(pull, abs=0.01)
    assert noise == pytest.approx([0.17, 0.52, 0.85], abs=0.09)
