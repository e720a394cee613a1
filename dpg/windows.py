"""Which steps of a rollout are stochastic; every other one is a plain ODE step and stays out of the loss."""

import random
from collections.abc import Sequence

from dpg.guidance import draw_steps

WINDOWS = ("all", "segments", "window", "sliding")


def stochastic_steps(
    window: str,
    num_steps: int,
    *,
    seed: int = 0,
    iteration: int = 0,
    segments: int = 3,
    start: int | None = 0,
    width: int = 2,
    stride: int = 1,
    every: int = 25,
    lambdas: Sequence[float] | None = None,
) -> list[int]:
    """The stochastic steps of one rollout; a pure function of its arguments, so a resumed run draws the same.

    - `all`: every step (Flow-GRPO, arXiv 2505.05470; DanceGRPO).
    - `segments`: one random step of each of K segments, drawn anew each iteration (BeautyGRPO, arXiv 2603.01163; P).
    - `window`: `width` steps from `start` (Flow-GRPO-Fast). Its code draws the place for each rollout: `start=None`.
    - `sliding`: `width` steps, moved by `stride` every `every` iterations, from the noisy end to the last place that
      fits and then back to the start (MixGRPO; its code stops or rolls back there, we roll back).

    The last step is never stochastic, in any window: its noise would stay in the picture (Flow-GRPO's code leaves it
    out of training too). Nor is a step whose lambda is 1: it is deterministic (I).

    Args:
        window: one of `WINDOWS`.
        num_steps: T, at least 1.
        seed: of the run; used by `segments` and by `window` with `start=None`.
        iteration: counts rollouts, from 0.
        segments: K of `segments`.
        start: first step of `window`; None draws it among the places that fit.
        width: steps in `window` and `sliding`.
        stride: steps that `sliding` moves by.
        every: iterations between two moves of `sliding`.
        lambdas: the T guidance weights; None means that all are below 1.

    Returns:
        Sorted, distinct step indices below T - 1; empty at T = 1.

    Raises:
        ValueError: an unknown window, or one that does not fit in the steps before the last.
    """
    if window not in WINDOWS:
        raise ValueError(f"window {window!r} is unknown; choose one of {', '.join(WINDOWS)}")
    if num_steps < 1 or iteration < 0:
        raise ValueError(f"num_steps {num_steps} must be at least 1 and iteration {iteration} at least 0")
    if lambdas is not None and len(lambdas) != num_steps:
        raise ValueError(f"{len(lambdas)} lambdas given for {num_steps} steps")
    own_seed = seed * 1_000_003 + iteration
    if window == "segments":
        return draw_steps(num_steps, segments, own_seed, lambdas=lambdas)
    if window == "all":
        steps = range(num_steps - 1)
    else:
        places = num_steps - width  # windows of this width before the last step
        if width < 1 or places < 1:
            raise ValueError(f"width {width} must lie in 1 .. {num_steps - 1}: the last step is never stochastic")
        if window == "sliding":
            first = _slid(iteration, places, stride, every)
        else:
            first = random.Random(own_seed).randrange(places) if start is None else start
        if not 0 <= first < places:
            raise ValueError(f"start {first} must lie in 0 .. {places - 1} for {width} of {num_steps} steps")
        steps = range(first, first + width)
    return [i for i in steps if lambdas is None or lambdas[i] < 1]


def _slid(iteration: int, places: int, stride: int, every: int) -> int:
    if stride < 1 or every < 1:
        raise ValueError(f"stride {stride} and every {every} must be at least 1")
    stops = range(0, places, stride)
    return stops[iteration // every % len(stops)]
