"""Steps as a trainer keeps them."""

import math

import pytest
import torch

from dpg.sampler import Pull, Sampler
from dpg.sde import sde_step

SHAPE = (3, 4, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sampler", ["flow_sde", "cps", "dance_sde"])
def test_on_policy_log_ratio_is_exactly_zero(sampler: str, dtype: torch.dtype) -> None:
    x, v, anchor = (torch.randn(SHAPE).to(dtype) for _ in range(3))
    taken = Sampler(sampler).take(x, v.requires_grad_(), 1.0, 0.8, pull=Pull(1 - 1e-6, anchor), index=0)
    assert taken.x_next.dtype == dtype and taken.index == 0
    assert not any(part.requires_grad for part in (taken.x, taken.x_next, taken.noise, taken.mean, taken.log_prob))
    ratio = taken.log_ratio(v)
    assert ratio.tolist() == [0, 0, 0]
    ratio.sum().backward()
    assert v.grad is not None and torch.isfinite(v.grad).all() and v.grad.abs().max() > 0


def test_log_ratio_is_the_difference_of_log_probabilities_and_so_is_its_gradient() -> None:
    x, v, anchor = (torch.randn(SHAPE, dtype=torch.float64) for _ in range(3))
    taken = Sampler().take(x, v, 0.8, 0.6, pull=Pull(0.7, anchor))
    step = sde_step(x, v, 0.8, 0.6, noise=taken.noise, anchor=anchor, lam=0.7)
    assert torch.equal(taken.x_next, step.x_next) and torch.equal(taken.log_prob, step.log_prob)
    first, second = ((v + 0.05).requires_grad_() for _ in range(2))
    ratio = taken.log_ratio(first)
    difference = sde_step(x, second, 0.8, 0.6, x_next=taken.x_next, anchor=anchor, lam=0.7).log_prob - taken.log_prob
    torch.testing.assert_close(ratio, difference, rtol=0, atol=1e-10)
    ratio.sum().backward()
    difference.sum().backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=0, atol=1e-10)


def test_mean_importance_ratio_is_one() -> None:
    """E_old[exp(log p_new(x') - log p_old(x'))] = 1, for one number a sample, whatever lam and storage dtype."""
    draws = 40_000
    generator = torch.Generator().manual_seed(2)
    x, v, anchor = (torch.full((draws, 1), number) for number in (0.3, -1.2, 2.0))
    for lam in (0.0, 0.95):
        taken = Sampler().take(x, v, 0.7, 0.5, pull=Pull(lam, anchor), generator=generator, storage_dtype=torch.bfloat16)
        ratio = taken.log_ratio(v + 0.5).exp()
        assert ratio.mean().item() == pytest.approx(1, abs=4.5 * ratio.std().item() / math.sqrt(draws))
        assert ratio.std() > 0.1


def test_a_deterministic_step_has_no_ratio() -> None:
    x, v = torch.randn(2, *SHAPE).unbind(0)
    with pytest.raises(ValueError, match="std must be above 0"):
        Sampler(eta=0).take(x, v, 0.8, 0.6).log_ratio(v)
