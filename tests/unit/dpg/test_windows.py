"""Step windows."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpg.guidance import WINDOWS, lambda_schedule, stochastic_steps


def test_all_is_every_step_but_the_last() -> None:
    assert stochastic_steps("all", 6) == [0, 1, 2, 3, 4]
    assert stochastic_steps("all", 1) == []


def test_window_is_where_it_starts_or_drawn_among_the_places_that_fit() -> None:
    assert stochastic_steps("window", 10, start=3, width=2) == [3, 4]
    drawn = [stochastic_steps("window", 6, seed=1, iteration=i, start=None, width=2) for i in range(80)]
    assert {tuple(steps) for steps in drawn} == {(0, 1), (1, 2), (2, 3), (3, 4)}


def test_sliding_moves_every_few_iterations_and_comes_back() -> None:
    at = [stochastic_steps("sliding", 8, iteration=i, width=3, stride=2, every=5) for i in (0, 4, 5, 10, 14, 15, 20)]
    assert at == [[0, 1, 2], [0, 1, 2], [2, 3, 4], [4, 5, 6], [4, 5, 6], [0, 1, 2], [2, 3, 4]]


def test_segments_are_drawn_anew_each_iteration_and_each_seed() -> None:
    draws = [stochastic_steps("segments", 28, seed=seed, iteration=i) for seed in range(3) for i in range(20)]
    assert all(len(steps) == 3 for steps in draws)
    assert len({tuple(steps) for steps in draws}) > 50
    assert draws[25] == stochastic_steps("segments", 28, seed=1, iteration=5)


def test_the_draws_of_a_seed_stay_what_they_are() -> None:
    """A run that is resumed with a later version draws the steps it would have drawn."""
    assert [stochastic_steps("segments", 28, seed=1, iteration=i) for i in (0, 5, 6)] == [[8, 14, 26], [4, 16, 21], [8, 12, 20]]
    assert stochastic_steps("window", 20, seed=2, iteration=3, start=None) == [11, 12]


def test_what_is_not_told_is_as_documented() -> None:
    assert stochastic_steps("window", 9) == stochastic_steps("sliding", 9) == stochastic_steps("sliding", 9, iteration=24) == [0, 1]
    assert stochastic_steps("sliding", 9, iteration=25) == [1, 2] and stochastic_steps("sliding", 9, iteration=25 * 7) == [0, 1]
    assert stochastic_steps("segments", 28) == stochastic_steps("segments", 28, seed=0, iteration=0, segments=3)
    assert stochastic_steps("window", 2, width=1) == [0] and stochastic_steps("window", 5, start=3, width=1) == [3]
    assert stochastic_steps("all", 4, lambdas=[1, 1 - 1e-9, 0.0, 0.0]) == [1, 2]


@given(
    window=st.sampled_from(WINDOWS),
    num_steps=st.integers(4, 40),
    seed=st.integers(0, 99),
    iteration=st.integers(0, 999),
)
@settings(deadline=None)
def test_every_window_is_sorted_seeded_and_leaves_the_last_step_alone(window: str, num_steps: int, seed: int, iteration: int) -> None:
    lambdas = lambda_schedule(num_steps, lam_max=1.0)
    steps = stochastic_steps(window, num_steps, seed=seed, iteration=iteration, start=None, width=3, lambdas=lambdas)
    assert steps == sorted(set(steps)) and steps
    assert steps[0] > 0 and steps[-1] < num_steps - 1  # lambda is 1 at the first step
    again = stochastic_steps(window, num_steps, seed=seed, iteration=iteration, start=None, width=3, lambdas=lambdas)
    assert steps == again


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("window 'half' is unknown; choose one of all, segments, window, sliding", {"window": "half"}),
        ("segments 9 must not exceed the 6 steps", {"window": "segments", "segments": 9}),
        ("width 6 must lie in 1 .. 5", {"window": "window", "width": 6}),
        ("width 0 must lie in 1 .. 5", {"window": "sliding", "width": 0}),
        ("start 4 must lie in 0 .. 3", {"window": "window", "start": 4, "width": 2}),
        ("start -1 must lie in 0 .. 3", {"window": "window", "start": -1, "width": 2}),
        ("stride 0 and every 25 must be at least 1", {"window": "sliding", "stride": 0}),
        ("iteration -1 at least 0", {"window": "all", "iteration": -1}),
        ("1 lambdas given for 6 steps", {"window": "all", "lambdas": [0.5]}),
    ],
)
def test_windows_that_do_not_fit_are_refused(message: str, arguments: dict[str, Any]) -> None:
    keywords: dict[str, Any] = {"num_steps": 6, **arguments}
    with pytest.raises(ValueError, match=message):
        stochastic_steps(**keywords)
