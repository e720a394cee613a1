"""Guidance targets, lambda schedules and the drawn steps."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpg.guidance import SCHEDULES, anchor_velocity, draw_steps, guidance_weights, lambda_schedule, x_star


def test_x_star_is_the_euler_step_with_the_anchors_velocity() -> None:
    x, anchor = torch.randn(2, 3, 4, 5, dtype=torch.float64).unbind(0)
    sigma, sigma_next = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64), torch.tensor([0.7, 0.5, 0.0])
    stepped = x + (sigma_next - sigma)[:, None, None] * anchor_velocity(x, anchor, sigma)
    target = x_star(x, anchor, sigma, sigma_next)
    torch.testing.assert_close(target, stepped, rtol=0, atol=1e-14)
    assert torch.equal(target[2], anchor[2])  # sigma_next = 0
    assert torch.equal(target[1], x[1])  # no length


def test_levels_out_of_range_are_refused() -> None:
    x = torch.ones(1, 2)
    with pytest.raises(ValueError, match="sigma 0.0 must lie in"):
        anchor_velocity(x, x, 0.0)
    with pytest.raises(ValueError, match="sigma_next 0.9 must lie in"):
        x_star(x, x, 0.5, 0.9)
    with pytest.raises(ValueError, match="lam 2.0 must lie in"):
        guidance_weights(2.0)


def test_linear_schedule_values() -> None:
    assert lambda_schedule(5) == [0.95, 0.75, 0.5, 0.25, 0.0]
    assert lambda_schedule(5, lam_max=1.0) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert lambda_schedule(1) == [0.0]
    assert lambda_schedule(2) == [0.95, 0.0]


def test_other_schedules_values() -> None:
    assert lambda_schedule(3, "constant", 0.4) == [0.4, 0.4, 0.4]
    assert lambda_schedule(3, "zero") == [0.0, 0.0, 0.0]
    assert lambda_schedule(4, "sigma") == [0.95, 0.75, 0.5, 0.25]
    assert lambda_schedule(3, "sigma", sigmas=[1.0, 0.9, 0.6, 0.0]) == [0.95, 0.9, 0.6]
    assert lambda_schedule(3, "sigma", sigmas=[0.5, 0.5, 0.2]) == [0.5, 0.5, 0.2]  # two of one level are in order


@given(num_steps=st.integers(1, 60), kind=st.sampled_from(SCHEDULES), lam_max=st.floats(0, 1))
@settings(deadline=None)
def test_every_schedule_is_clamped_and_non_increasing(num_steps: int, kind: str, lam_max: float) -> None:
    lambdas = lambda_schedule(num_steps, kind, lam_max)
    assert len(lambdas) == num_steps
    assert all(0 <= lam <= lam_max for lam in lambdas)
    assert lambdas == sorted(lambdas, reverse=True)
    if kind in ("linear", "zero"):
        assert lambdas[-1] == 0


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("lambda schedule 'cosine' is unknown; choose one of linear, sigma, constant, zero", {"kind": "cosine"}),
        ("lam_max 1.5 must lie in", {"lam_max": 1.5}),
        ("num_steps 0 must be at least 1", {"num_steps": 0}),
        ("sigmas must be 4 non-increasing numbers", {"kind": "sigma", "sigmas": [1.0, 0.5]}),
        ("sigmas must be 4 non-increasing numbers", {"kind": "sigma", "sigmas": [0.2, 0.5, 0.4, 0.1]}),
        ("sigmas must be 4 non-increasing numbers", {"kind": "sigma", "sigmas": [0.9, 0.5, 0.6, 0.3]}),
        ("sigmas must be 4 non-increasing numbers in .0, 1.", {"kind": "sigma", "sigmas": [1.5, 0.5, 0.4, 0.3]}),
    ],
)
def test_impossible_schedules_are_refused(message: str, arguments: dict[str, Any]) -> None:
    keywords: dict[str, Any] = {"num_steps": 4, **arguments}
    with pytest.raises(ValueError, match=message):
        lambda_schedule(**keywords)


@given(num_steps=st.integers(2, 60), seed=st.integers(0, 10**9), data=st.data())
@settings(deadline=None)
def test_one_step_per_segment_never_the_last(num_steps: int, seed: int, data: st.DataObject) -> None:
    segments = data.draw(st.integers(1, num_steps - 1))
    drawn = draw_steps(num_steps, segments, seed)
    assert len(drawn) == segments
    assert drawn == sorted(set(drawn)) and drawn[-1] < num_steps - 1
    for k, i in enumerate(drawn):
        assert k * num_steps // segments <= i < (k + 1) * num_steps // segments
    assert drawn == draw_steps(num_steps, segments, seed)


def test_every_eligible_step_is_drawn_equally_often() -> None:
    counts = Counter(i for seed in range(3000) for i in draw_steps(10, 3, seed))
    assert sorted(counts) == list(range(9))
    assert all(count == pytest.approx(1000, abs=130) for count in counts.values())


def test_a_step_whose_lambda_is_one_is_never_drawn() -> None:
    unclamped, clamped = lambda_schedule(10, lam_max=1.0), lambda_schedule(10)
    assert all(draw_steps(10, 3, seed, lambdas=unclamped)[0] in (1, 2) for seed in range(50))
    assert {draw_steps(10, 3, seed, lambdas=clamped)[0] for seed in range(50)} == {0, 1, 2}


def test_a_segment_without_an_eligible_step_gives_none() -> None:
    assert draw_steps(1, 1, 0) == []
    assert draw_steps(4, 4, 0) == [0, 1, 2]
    assert draw_steps(4, 4, 0, lambdas=lambda_schedule(4, lam_max=1.0)) == [1, 2]


@pytest.mark.parametrize(
    ("num_steps", "segments", "message"),
    [(3, 4, "segments 4 must not exceed the 3 steps"), (3, 0, "must be at least 1"), (0, 1, "must be at least 1")],
)
def test_impossible_draws_are_refused(num_steps: int, segments: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_steps(num_steps, segments, 0)
    with pytest.raises(ValueError, match="2 lambdas given for 5 steps"):
        draw_steps(5, 2, 0, lambdas=[0.5, 0.0])
