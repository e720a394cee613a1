"""Where Dynamic Path Guidance pulls, how hard, and at which steps (BeautyGRPO, arXiv 2603.01163); which steps are stochastic.

P marks what the paper's sources state, I what is our inference. Conventions: `x_t = (1 - t) x0 + t eps`,
`v = eps - x0`, `t = sigma` from 1 (noise) to 0 (image), T steps, index 0 is the noisiest.
"""

import random
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from dpg.levels import Level, as_levels, noise_levels, per_sample

SCHEDULES = ("linear", "sigma", "constant", "zero")
WINDOWS = ("all", "segments", "window", "sliding")


def anchor_velocity(x: Float[Tensor, " batch *dims"], anchor: Float[Tensor, "..."], sigma: Level) -> Float[Tensor, " batch *dims"]:
    """The velocity that leads straight from `x` to the anchor: `(x_t - x0_anchor) / sigma` (P).

    Args:
        x: the sample at level `sigma`.
        anchor: latent of a preferred retouch of the SAME photo, with the policy's own normalisation, packing and pixel
            alignment; shape of `x`, or its first dimension 1.
        sigma: in (0, 1], one for all or `(batch,)`.

    Raises:
        ValueError: sigma out of (0, 1].
    """
    level, _ = noise_levels(sigma, 0.0)
    return (x - anchor) / per_sample(level, x)


def x_star(
    x: Float[Tensor, " batch *dims"], anchor: Float[Tensor, "..."], sigma: Level, sigma_next: Level
) -> Float[Tensor, " batch *dims"]:
    """Where an Euler step with the anchor's velocity lands: `(D / sigma) x0_anchor + (1 - D / sigma) x_t` (P).

    At `sigma_next = 0` that is the anchor, to the bit.

    Args:
        x: the sample at level `sigma`.
        anchor: as in `anchor_velocity`.
        sigma: in (0, 1], one for all or `(batch,)`.
        sigma_next: in [0, sigma]; `D = sigma - sigma_next`.

    Raises:
        ValueError: a level out of its range.
    """
    before, after = noise_levels(sigma, sigma_next)
    pull = (before - after) / before
    return per_sample(pull, x) * anchor + per_sample(1 - pull, x) * x


def lambda_schedule(
    num_steps: int, kind: str = "linear", lam_max: float | int = 0.95, *, sigmas: Sequence[float] | None = None
) -> list[float]:
    """The guidance weight of every step, clamped to [0, lam_max].

    - `linear`: `(T - 1 - i) / max(1, T - 1)`, 1 at the noisy start, 0 at the last step. The digests of the paper
      disagree on the denominator; only this one stays in [0, 1] (I).
    - `sigma`: the noise level itself (I); never quite 0.
    - `constant`: `lam_max` everywhere (I).
    - `zero`: no guidance, the plain stochastic step.

    Args:
        num_steps: T, at least 1.
        kind: one of `SCHEDULES`.
        lam_max: the clamp, in [0, 1]. Below 1 by default (I): at 1 a step has no density, so nothing to learn from.
        sigmas: the T noise levels for `sigma`, non-increasing in [0, 1] (a trailing end level is ignored); None is a
            uniform grid from 1.

    Returns:
        T numbers, non-increasing.

    Raises:
        ValueError: an unknown kind, or a number out of its range.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps {num_steps} must be at least 1")
    if not 0 <= lam_max <= 1:
        raise ValueError(f"lam_max {lam_max} must lie in [0, 1]; 0.95 is the default")
    if kind == "linear":
        weights = [(num_steps - 1 - i) / max(1, num_steps - 1) for i in range(num_steps)]
    elif kind == "sigma":
        weights = [1 - i / num_steps for i in range(num_steps)] if sigmas is None else list(sigmas)[:num_steps]
        falling = all(a >= b for a, b in zip(weights, weights[1:], strict=False))
        if len(weights) < num_steps or not falling or not all(0 <= weight <= 1 for weight in weights):
            raise ValueError(f"sigmas must be {num_steps} non-increasing numbers in [0, 1], got {weights}")
    elif kind in ("constant", "zero"):
        weights = [1.0 if kind == "constant" else 0.0] * num_steps
    else:
        raise ValueError(f"lambda schedule {kind!r} is unknown; choose one of {', '.join(SCHEDULES)}")
    return [min(float(weight), float(lam_max)) for weight in weights]


def draw_steps(num_steps: int, segments: int, seed: int, *, lambdas: Sequence[float] | None = None) -> list[int]:
    """One uniformly random step of each of `segments` contiguous segments (P: K = 3; K = 5 is similar and slower).

    Segment k of K holds the steps from `k T // K` up to `(k + 1) T // K`, so the last one is never shorter than
    another. Two kinds of step are never drawn (I): the last (its noise would stay in the picture), and any whose lambda
    is 1 (it is deterministic, so it teaches nothing). With the linear schedule that is i = 0 when `lam_max` is 1, and
    none under the default clamp. A segment left without a step gives none: the last one when K = T (so T = 1 gives
    `[]`), and the first one when lambda is 1 there and T < 2 K.

    Share the result within a group: its members must be stochastic at the same steps.

    Args:
        num_steps: T, at least 1.
        segments: K, from 1 to T.
        seed: the same seed gives the same steps on every machine.
        lambdas: T guidance weights; None means that all are below 1.

    Returns:
        Sorted, distinct step indices, K of them but for the cases above.

    Raises:
        ValueError: K > T, or a number below 1.
    """
    if num_steps < 1 or segments < 1:
        raise ValueError(f"num_steps {num_steps} and segments {segments} must be at least 1")
    if segments > num_steps:
        raise ValueError(f"segments {segments} must not exceed the {num_steps} steps; use at most {num_steps}")
    if lambdas is not None and len(lambdas) != num_steps:
        raise ValueError(f"{len(lambdas)} lambdas given for {num_steps} steps")
    draw = random.Random(seed)
    drawn = []
    for k in range(segments):
        steps = range(k * num_steps // segments, (k + 1) * num_steps // segments)
        eligible = [i for i in steps if i < num_steps - 1 and (lambdas is None or lambdas[i] < 1)]
        drawn += [eligible[draw.randrange(len(eligible))]] if eligible else []
    return drawn


def guidance_weights(lam: Level) -> Tensor:
    """The guidance weight, checked.

    Args:
        lam: in [0, 1], one for all or `(batch,)`.

    Returns:
        float64 on the CPU, `()` or `(batch,)`.

    Raises:
        ValueError: a weight out of [0, 1].
    """
    weights = as_levels(lam)
    if not bool(((weights >= 0) & (weights <= 1)).all()):
        raise ValueError(f"lam {weights.tolist()} must lie in [0, 1]: 0 is the plain step, 1 the anchor's path")
    return weights


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
            if stride < 1 or every < 1:
                raise ValueError(f"stride {stride} and every {every} must be at least 1")
            stops = range(0, places, stride)
            first = stops[iteration // every % len(stops)]
        else:
            first = random.Random(own_seed).randrange(places) if start is None else start
        if not 0 <= first < places:
            raise ValueError(f"start {first} must lie in 0 .. {places - 1} for {width} of {num_steps} steps")
        steps = range(first, first + width)
    return [i for i in steps if lambdas is None or lambdas[i] < 1]
