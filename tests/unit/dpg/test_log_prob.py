"""Log-probabilities and ratios of every sampler, with and without guidance."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noise import NOISY, tensors
from torch import Tensor
from torch.distributions import Normal

from dpg.sampler import Sampler
from dpg.sde import SAMPLERS, log_ratio, sde_step


@pytest.mark.parametrize("sampler", NOISY)
@pytest.mark.parametrize("lam", [0.0, 0.4, 0.95])
def test_log_prob_is_that_of_the_normal_averaged(sampler: str, lam: float) -> None:
    x, v, anchor = tensors("x", "v", "anchor", dtype=torch.float64)
    step = sde_step(x, v, 0.8, 0.6, sampler=sampler, anchor=anchor, lam=lam)
    normal = Normal(step.mean, step.std.expand_as(step.mean)).log_prob(step.x_next).mean((1, 2))
    if sampler == "cps":  # published without the normalisation: 2 sig_step^2 times the quadratic term alone
        plain_std = step.std.flatten() / (1 - lam)
        normal = 2 * plain_std**2 * (normal + step.std.flatten().log() + math.log(2 * math.pi) / 2)
    torch.testing.assert_close(step.log_prob, normal, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sampler", NOISY)
@pytest.mark.parametrize("lam", [0.0, 0.6, 1 - 1e-6])
def test_on_policy_ratio_is_exactly_one_after_storage(sampler: str, lam: float, dtype: torch.dtype) -> None:
    x, v, anchor = tensors("x", "v", "anchor", dtype=dtype)
    keywords: dict[str, Any] = {"sampler": sampler, "anchor": anchor, "lam": lam}
    step = sde_step(x, v, 1.0, 0.9, **keywords)
    assert step.x_next.dtype == dtype and step.mean.dtype == torch.promote_types(dtype, torch.float32)
    stored = step.x_next.clone().to(torch.float64).to(dtype)
    again = sde_step(x, v, 1.0, 0.9, x_next=stored, **keywords)
    assert torch.equal(again.log_prob, step.log_prob) and torch.isfinite(step.log_prob).all()
    assert torch.equal(again.x_next, step.x_next)


def test_storage_dtype_rounds_before_the_log_probability() -> None:
    x, v, z = tensors("x", "v", "z")
    step = sde_step(x, v, 0.8, 0.6, noise=z, storage_dtype=torch.bfloat16)
    assert step.x_next.dtype == torch.bfloat16
    assert torch.equal(sde_step(x, v, 0.8, 0.6, x_next=step.x_next.float()).log_prob, step.log_prob)
    assert not torch.equal(sde_step(x, v, 0.8, 0.6, noise=z).log_prob, step.log_prob)


def test_mixed_dtypes_compute_in_the_widest_and_store_as_x() -> None:
    x, v, anchor = tensors("x", "v", "anchor")
    step = sde_step(x.bfloat16(), v, 0.8, 0.6, anchor=anchor.double(), lam=0.5)
    assert (step.x_next.dtype, step.mean.dtype, step.log_prob.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert sde_step(x, v.double(), 0.8, 0.6).mean.dtype == torch.float64
    low = Sampler().mean_std(x.bfloat16(), v.bfloat16(), 0.8, 0.6)[0]
    torch.testing.assert_close(low, Sampler().mean_std(x.bfloat16().float(), v.bfloat16().float(), 0.8, 0.6)[0])


@pytest.mark.parametrize("sampler", NOISY)
@given(lam=st.floats(0, 0.99), sigma=st.floats(0.05, 1 - 1e-6) | st.just(1.0), share=st.floats(0.05, 0.95), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_log_ratio_does_not_depend_on_lam(sampler: str, lam: float, sigma: float, share: float, seed: int) -> None:
    """At 1, where sigma_max stands in, too; between that and 1 - 1e-6 the noise is so large that float64 keeps too few digits."""
    x, v, change, z, anchor = tensors("x", "v", "change", "z", "anchor", dtype=torch.float64, seed=seed)
    sigma_next = sigma * share
    mean_old, std = Sampler(sampler).mean_std(x, v, sigma, sigma_next)
    new_v = v + 1e-3 * std * change
    free = log_ratio(Sampler(sampler).mean_std(x, new_v, sigma, sigma_next)[0], mean_old, std, z, sampler=sampler)
    keywords: dict[str, Any] = {"sampler": sampler, "anchor": anchor, "lam": lam}
    old = sde_step(x, v, sigma, sigma_next, noise=z, **keywords)
    new = sde_step(x, new_v, sigma, sigma_next, x_next=old.x_next, **keywords)
    torch.testing.assert_close(new.log_prob - old.log_prob, free, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("sampler", NOISY)
def test_log_ratio_and_its_gradient_are_finite_next_to_lam_one(sampler: str) -> None:
    x, v, change, z, anchor = tensors("x", "v", "change", "z", "anchor")
    lam = 1 - 1e-6
    new_v = (v + 1e-3 * change).requires_grad_()
    mean_old, std = Sampler(sampler).mean_std(x, v, 0.8, 0.6)
    ratio = log_ratio(Sampler(sampler).mean_std(x, new_v, 0.8, 0.6)[0], mean_old, std, z, sampler=sampler)
    ratio.sum().backward()
    exact = log_ratio(
        Sampler(sampler).mean_std(x.double(), new_v.double(), 0.8, 0.6)[0],
        mean_old.double(),
        std.double(),
        z,
        sampler=sampler,
    )
    torch.testing.assert_close(ratio.double(), exact, rtol=1e-3, atol=1e-6)
    assert new_v.grad is not None and torch.isfinite(new_v.grad).all() and new_v.grad.abs().max() > 0
    step = sde_step(x, new_v, 0.8, 0.6, sampler=sampler, noise=z, anchor=anchor, lam=lam)
    assert torch.isfinite(step.log_prob).all()


@pytest.mark.parametrize("sampler", NOISY)
def test_on_policy_log_ratio_is_exactly_zero_with_the_score_as_gradient(sampler: str) -> None:
    x, v, z = tensors("x", "v", "z", dtype=torch.float64)
    mean, std = Sampler(sampler).mean_std(x, v, 0.8, 0.6)
    current = mean.clone().requires_grad_()
    ratio = log_ratio(current, mean, std, z, sampler=sampler)
    assert ratio.tolist() == [0, 0, 0]
    ratio.sum().backward()
    weight = 2 * std**2 if sampler == "cps" else 1
    torch.testing.assert_close(current.grad, weight * z / std / 20, rtol=1e-12, atol=0)


def test_log_ratio_of_a_shared_mean_sums_its_members_gradients() -> None:
    x, v = tensors("x", "v", shape=(1, 4, 5))
    (z,) = tensors("z")
    mean, std = Sampler().mean_std(x, v, 0.8, 0.6)
    shared, single = (mean.clone().requires_grad_() for _ in range(2))
    ratio = log_ratio(shared + 0.01, mean, std, z)
    ratio.sum().backward()
    each = [log_ratio(single + 0.01, mean, std.item(), z[i : i + 1]) for i in range(3)]
    torch.cat(each).sum().backward()
    torch.testing.assert_close(ratio, torch.cat(each))
    torch.testing.assert_close(shared.grad, single.grad)


def test_the_deviation_of_each_sample_may_be_a_row_of_numbers() -> None:
    mean, old, z = tensors("mean", "old", "z")
    std = torch.tensor([0.5, 1.0, 2.0])
    torch.testing.assert_close(log_ratio(mean, old, std, z), log_ratio(mean, old, std[:, None, None], z), rtol=0, atol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_gradient_reaches_the_velocity_and_nothing_else(sampler: str) -> None:
    x, v, anchor, z = tensors("x", "v", "anchor", "z")
    v.requires_grad_()
    anchor.requires_grad_()
    z.requires_grad_()
    step = sde_step(x, v, 0.8, 0.6, sampler=sampler, anchor=anchor, lam=0.5, noise=z)
    assert not step.x_next.requires_grad
    step.x_next.requires_grad_()
    again = sde_step(x, v, 0.8, 0.6, sampler=sampler, anchor=anchor, lam=0.5, x_next=step.x_next)
    (again.log_prob.sum() + again.mean.sum()).backward()
    assert v.grad is not None and v.grad.abs().max() > 0
    assert anchor.grad is None and z.grad is None and step.x_next.grad is None


def test_gradient_is_finite_where_a_batch_mixes_deterministic_and_noisy_steps() -> None:
    x, v, anchor = tensors("x", "v", "anchor")
    v.requires_grad_()
    step = sde_step(x, v, 0.8, torch.tensor([0.6, 0.0, 0.6]), sampler="cps", anchor=anchor, lam=torch.tensor([0.5, 0, 1]))
    step.log_prob.sum().backward()
    assert step.log_prob[0] < 0 and step.log_prob[1:].tolist() == [0, 0]
    assert v.grad is not None and torch.isfinite(v.grad).all()
    assert v.grad[1:].abs().max() == 0


@pytest.mark.parametrize("sampler", NOISY)
def test_kl_to_a_reference_does_not_depend_on_lam(sampler: str) -> None:
    x, v, reference, anchor = tensors("x", "v", "reference", "anchor", dtype=torch.float64)

    def divergence(lam: float) -> Tensor:
        keywords: dict[str, Any] = {"sampler": sampler, "anchor": anchor, "lam": lam}
        ours, theirs = (sde_step(x, velocity, 0.8, 0.6, **keywords) for velocity in (v, reference))
        return ((ours.mean - theirs.mean) ** 2 / (2 * ours.std**2)).mean((1, 2))

    for lam in (0.3, 0.95):
        torch.testing.assert_close(divergence(lam), divergence(0.0), rtol=1e-10, atol=0)


def test_log_ratio_refuses_a_deterministic_step_and_an_unknown_sampler() -> None:
    (mean,) = tensors("mean")
    with pytest.raises(ValueError, match="std must be above 0"):
        log_ratio(mean, mean, 0.0, mean)
    with pytest.raises(ValueError, match="sampler 'x' is unknown"):
        log_ratio(mean, mean, 1.0, mean, sampler="x")
