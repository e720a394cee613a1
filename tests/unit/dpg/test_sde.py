"""Every sampler's step: the published formulas, Euler to the bit, batches and shapes, and what is refused."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noise import SHAPE, tensors
from torch import Tensor

from dpg.sde import SAMPLERS, sde_step, step_coefficients

# the plain step, against the formulas as published


def test_flow_sde_is_the_published_formula() -> None:
    x, v, z = tensors("x", "v", "z", dtype=torch.float64)
    sigma, sigma_next, eta = 0.8, 0.65, 0.7
    dt, s = sigma_next - sigma, eta * math.sqrt(sigma / (1 - sigma))
    mean = x * (1 + s**2 * dt / (2 * sigma)) + v * (1 + s**2 * (1 - sigma) / (2 * sigma)) * dt
    step = sde_step(x, v, sigma, sigma_next, eta=eta, noise=z)
    torch.testing.assert_close(step.mean, mean, rtol=0, atol=1e-14)
    torch.testing.assert_close(step.x_next, mean + s * math.sqrt(-dt) * z, rtol=0, atol=1e-14)
    assert step.std.shape == (3, 1, 1)
    assert step.std.flatten().tolist() == pytest.approx([s * math.sqrt(-dt)] * 3, abs=1e-15)


def test_dance_sde_is_the_published_formula() -> None:
    x, v, z = tensors("x", "v", "z", dtype=torch.float64)
    sigma, sigma_next, eta = 0.8, 0.65, 0.3
    dt = sigma_next - sigma
    x0h = x - sigma * v
    mean = x + v * dt + eta**2 / 2 * (x - (1 - sigma) * x0h) / sigma**2 * dt
    step = sde_step(x, v, sigma, sigma_next, sampler="dance_sde", eta=eta, noise=z)
    torch.testing.assert_close(step.mean, mean, rtol=0, atol=1e-14)
    torch.testing.assert_close(step.x_next, mean + eta * math.sqrt(-dt) * z, rtol=0, atol=1e-14)


def test_cps_is_the_published_formula() -> None:
    x, v, z = tensors("x", "v", "z", dtype=torch.float64)
    sigma, sigma_next, eta = 0.8, 0.65, 0.6
    s = sigma_next * math.sin(eta * math.pi / 2)
    x0h, x1h = x - sigma * v, x + (1 - sigma) * v
    mean = (1 - sigma_next) * x0h + math.sqrt(sigma_next**2 - s**2) * x1h
    step = sde_step(x, v, sigma, sigma_next, sampler="cps", eta=eta, noise=z)
    torch.testing.assert_close(step.mean, mean, rtol=0, atol=1e-14)
    torch.testing.assert_close(step.x_next, mean + s * z, rtol=0, atol=1e-14)
    torch.testing.assert_close(step.log_prob, -((s * z) ** 2).mean((1, 2)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@given(sigma=st.floats(1e-3, 1), share=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_without_noise_every_sampler_is_euler_to_the_bit(sampler: str, sigma: float, share: float) -> None:
    x, v = tensors("x", "v")
    sigma_next = sigma * share
    step = sde_step(x, v, sigma, sigma_next, sampler=sampler, eta=0)
    assert torch.equal(step.x_next, x + (sigma_next - sigma) * v)
    assert torch.equal(step.mean, step.x_next)
    assert step.std.abs().max() == 0 and step.log_prob.tolist() == [0, 0, 0]


def test_ode_ignores_eta_and_draws_no_noise() -> None:
    x, v = tensors("x", "v")
    state = torch.get_rng_state()
    assert torch.equal(sde_step(x, v, 0.8, 0.6, sampler="ode", eta=0.7).x_next, x + (0.6 - 0.8) * v)
    assert torch.equal(torch.get_rng_state(), state)


def test_euler_to_the_bit_holds_for_batched_and_low_precision_input() -> None:
    x, v = tensors("x", "v")
    sigma, sigma_next = torch.tensor([0.9, 0.5, 0.31]), torch.tensor([0.7, 0.3, 0.0])
    dt = (sigma_next - sigma)[:, None, None]
    assert torch.equal(sde_step(x, v, sigma, sigma_next, sampler="ode").x_next, x + dt * v)
    low, fast = x.bfloat16(), v.bfloat16()
    expected = (low.float() + dt * fast.float()).bfloat16()
    assert torch.equal(sde_step(low, fast, sigma, sigma_next, eta=0).x_next, expected)


# batches, shapes, ends of the range


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batched_equals_looped(sampler: str) -> None:
    x, v, z, anchor = tensors("x", "v", "z", "anchor")
    sigma, sigma_next, lam = torch.tensor([1.0, 0.6, 0.3]), torch.tensor([0.8, 0.4, 0.0]), torch.tensor([0.9, 0.5, 0.0])
    batch = sde_step(x, v, sigma, sigma_next, sampler=sampler, noise=z, anchor=anchor, lam=lam)
    for i in range(3):
        one = slice(i, i + 1)
        single = sde_step(
            x[one], v[one], sigma[i].item(), sigma_next[i].item(),
            sampler=sampler, noise=z[one], anchor=anchor[one], lam=lam[i].item(),
        )  # fmt: skip
        for ours, theirs in zip(batch, single, strict=True):
            torch.testing.assert_close(ours[one], theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_packed_equals_unpacked(sampler: str) -> None:
    x, v, z, anchor = tensors("x", "v", "z", "anchor", shape=(2, 4, 6, 8))

    def pack(latents: Tensor) -> Tensor:
        return latents.reshape(2, 4, 3, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 12, 16)

    plain = sde_step(x, v, 0.8, 0.6, sampler=sampler, noise=z, anchor=anchor, lam=0.4)
    packed = sde_step(pack(x), pack(v), 0.8, 0.6, sampler=sampler, noise=pack(z), anchor=pack(anchor), lam=0.4)
    assert torch.equal(packed.x_next, pack(plain.x_next))
    torch.testing.assert_close(packed.log_prob, plain.log_prob)


def test_one_anchor_serves_the_whole_batch() -> None:
    x, v, z = tensors("x", "v", "z")
    (anchor,) = tensors("anchor", shape=(1, 4, 5))
    shared = sde_step(x, v, 0.8, 0.6, noise=z, anchor=anchor, lam=0.4)
    spread = sde_step(x, v, 0.8, 0.6, noise=z, anchor=anchor.expand(3, 4, 5), lam=0.4)
    assert torch.equal(shared.x_next, spread.x_next)
    shared, spread = (sde_step(x, v, 0.8, 0.6, noise=z, target=one, lam=0.4) for one in (anchor, anchor.expand(3, 4, 5)))
    assert torch.equal(shared.x_next, spread.x_next)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("sigma_next", [0.9, 0.0])
def test_finite_at_pure_noise(sampler: str, sigma_next: float) -> None:
    x, v = tensors("x", "v")
    step = sde_step(x, v, 1.0, sigma_next, sampler=sampler)
    assert all(torch.isfinite(part).all() for part in step)


def test_sigma_max_stands_in_only_at_pure_noise_and_defaults_to_the_next_level() -> None:
    at_noise = step_coefficients(1.0, 0.9, sigma_max=0.95).std.item()
    assert at_noise == pytest.approx(0.7 * math.sqrt(1 / (1 - 0.95) * 0.1))
    assert step_coefficients(1.0, 0.9) == step_coefficients(1.0, 0.9, sigma_max=0.9)
    assert step_coefficients(0.8, 0.7) == step_coefficients(0.8, 0.7, sigma_max=0.95)


def test_noise_comes_from_the_global_generator_or_the_given_one() -> None:
    x, v = tensors("x", "v")
    torch.manual_seed(5)
    first = sde_step(x, v, 0.8, 0.6).x_next
    torch.manual_seed(5)
    assert torch.equal(sde_step(x, v, 0.8, 0.6).x_next, first)
    given_one = sde_step(x, v, 0.8, 0.6, generator=torch.Generator().manual_seed(5)).x_next
    assert torch.equal(given_one, first)
    assert not torch.equal(sde_step(x, v, 0.8, 0.6).x_next, first)


# what is refused


@pytest.mark.parametrize(
    ("message", "keywords"),
    [
        ("sampler 'flow' is unknown; choose one of flow_sde, cps, dance_sde, ode", {"sampler": "flow"}),
        ("lam 1.5 must lie in", {"lam": 1.5}),
        ("lam -0.1 must lie in", {"lam": -0.1}),
        ("lam nan must lie in", {"lam": math.nan}),
        ("lam above 0 needs an anchor", {"lam": 0.5}),
        (
            "needs an anchor .or a target, not both",
            {"lam": 0.5, "anchor": torch.ones(SHAPE), "target": torch.ones(SHAPE)},
        ),
        ("eta -0.1 is out of range", {"eta": -0.1}),
        ("eta 1.5 is out of range for cps: 0 to 1", {"sampler": "cps", "eta": 1.5}),
        ("sigma_next 0.9 must lie in", {"sigma_next": 0.9}),
        ("sigma_next -0.1 must lie in", {"sigma_next": -0.1}),
        ("sigma 0.0 must lie in", {"sigma": 0.0, "sigma_next": 0.0}),
        ("sigma 1.5 must lie in", {"sigma": 1.5}),
        ("sigma_max 1.0 must lie in", {"sigma": 1.0, "sigma_max": 1.0}),
        ("sigma_next .0.5, 0.875, 0.5. must lie in", {"sigma_next": torch.tensor([0.5, 0.875, 0.5])}),
    ],
)
def test_impossible_settings_are_refused_by_name(message: str, keywords: dict[str, Any]) -> None:
    x, v = tensors("x", "v")
    arguments: dict[str, Any] = {"sigma": 0.8, "sigma_next": 0.6, **keywords}
    with pytest.raises(ValueError, match=message):
        sde_step(x, v, **arguments)


@pytest.mark.parametrize(
    ("message", "keywords"),
    [
        ("v of shape", {"v": torch.ones(3, 4, 1)}),
        ("noise of shape", {"noise": torch.ones(1, 4, 5)}),
        ("v of shape", {"v": torch.ones(1, 4, 5)}),
        ("x_next of shape", {"x_next": torch.ones(3, 20)}),
        ("x_next of shape", {"x_next": torch.ones(1, 4, 5)}),
        ("target of shape", {"target": torch.ones(3, 4, 1), "lam": 0.5}),
        ("anchor of shape", {"anchor": torch.ones(2, 4, 5), "lam": 0.5}),
        ("2 per-sample numbers for a batch of 3", {"sigma": torch.tensor([0.8, 0.7])}),
        ("must be a float or of shape", {"sigma": torch.full((3, 1), 0.8)}),
        ("give one of them", {"noise": torch.ones(SHAPE), "x_next": torch.ones(SHAPE)}),
    ],
)
def test_shapes_that_do_not_agree_are_refused(message: str, keywords: dict[str, Any]) -> None:
    x, v = tensors("x", "v")
    arguments: dict[str, Any] = {"x": x, "v": v, "sigma": 0.8, "sigma_next": 0.6, **keywords}
    with pytest.raises(ValueError, match=message):
        sde_step(**arguments)
