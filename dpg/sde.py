"""One step of a flow-matching sampler with its log-probability: `flow_sde`, `cps`, `dance_sde`, `ode`, and Dynamic Path
Guidance (DPG) over any of them.

Conventions: `x_t = (1 - t) x0 + t eps`, `v = eps - x0`, `t = sigma` from 1 (noise) to 0 (image),
`dt = sigma_next - sigma`, `D = -dt`. Every sampler here is `mu = on_x * x + on_v * v`, `x' = mu + sig_step * z`,
`z ~ N(0, I)`; `step_coefficients` has the three numbers. Tensor maths is in float32 whatever the model's dtype (float64
if `x` or `v` is).

Log-probabilities are AVERAGED over all non-batch dimensions, which is why Flow-GRPO's clip ranges are 1e-4 .. 1e-5.

P marks what the papers' sources state, I what is our inference. Sources: Flow-GRPO arXiv 2505.05470, BeautyGRPO (DPG)
arXiv 2603.01163, DanceGRPO arXiv 2505.07818, coefficients-preserving sampling (CPS) arXiv 2509.05952.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dpg.guidance import guidance_weights, x_star
from dpg.levels import Level, as_levels, noise_levels, per_sample
from portraitkit.errors import ConfigError

SAMPLERS = ("flow_sde", "cps", "dance_sde", "ode")
HALF_LOG_TWO_PI = math.log(2 * math.pi) / 2


class SDEStep(NamedTuple):
    """A step taken, or re-evaluated."""

    x_next: Float[Tensor, " batch *dims"]
    """Detached, in the storage dtype (that of `x` unless told otherwise)."""
    log_prob: Float[Tensor, " batch"]
    """Mean over all non-batch dimensions; 0 where the step is deterministic."""
    mean: Float[Tensor, " batch *dims"]
    """Of the distribution that x_next is drawn from: mu_new under guidance. float32 or float64; has `v`'s gradient."""
    std: Float[Tensor, " batch *ones"]
    """Of that distribution, (batch, 1, ..., 1): sig_new = (1 - lam) sig_step under guidance."""


class StepCoefficients(NamedTuple):
    """`mu = on_x * x + on_v * v`, and the standard deviation of x' around it; float64 on the CPU, () or (batch,)."""

    on_x: Float64[Tensor, "..."]
    on_v: Float64[Tensor, "..."]
    std: Float64[Tensor, "..."]


def step_coefficients(
    sigma: Level, sigma_next: Level, sampler: str = "flow_sde", eta: float | int = 0.7, sigma_max: Level | None = None
) -> StepCoefficients:
    """A sampler as three numbers.

    - `flow_sde` (P, arXiv 2505.05470): `s = eta sqrt(sigma / (1 - sigma))`,
      `mu = x (1 + s^2 dt / (2 sigma)) + v (1 + s^2 (1 - sigma) / (2 sigma)) dt`, `sig_step = s sqrt(D)`.
    - `dance_sde` (P, arXiv 2505.07818): `mu = x + v dt + eta^2 / 2 (x - (1 - sigma) x0h) / sigma^2 dt` with
      `x0h = x - sigma v`, `sig_step = eta sqrt(D)`. That is `flow_sde` with `s = eta` at every level (I).
    - `cps` (P, arXiv 2509.05952): `s = sigma' sin(eta pi / 2)`, `x0h = x - sigma v`, `x1h = x + (1 - sigma) v`,
      `mu = (1 - sigma') x0h + sqrt(sigma'^2 - s^2) x1h`, `sig_step = s`: the total noise is exactly sigma'.
    - `ode`, and every sampler at eta = 0: Euler, `x + dt v`, to the bit.

    Args:
        sigma: level before the step, in (0, 1].
        sigma_next: level after it, in [0, sigma].
        sampler: one of `SAMPLERS`.
        eta: noise strength, >= 0; in [0, 1] for `cps`. `ode` ignores it.
        sigma_max: what stands for sigma in flow_sde's denominator where sigma is 1, in [0, 1); the second level of the
            schedule in Flow-GRPO's code. None takes `sigma_next`, which is that level.

    Raises:
        ConfigError: an unknown sampler, or a number out of its range.
    """
    before, after = noise_levels(sigma, sigma_next)
    if sampler not in SAMPLERS:
        raise ConfigError(f"sampler {sampler!r} is unknown; choose one of {', '.join(SAMPLERS)}")
    if not 0 <= eta < math.inf or (sampler == "cps" and eta > 1):
        raise ConfigError(f"eta {eta} is out of range for {sampler}: {'0 to 1' if sampler == 'cps' else 'at least 0'}")
    size = before - after
    if sampler == "ode" or eta == 0:
        return StepCoefficients(torch.ones_like(size), -size, torch.zeros_like(size))
    if sampler == "cps":
        kept, drawn = after * math.cos(eta * math.pi / 2), after * math.sin(eta * math.pi / 2)
        return StepCoefficients(1 - after + kept, kept * (1 - before) - (1 - after) * before, drawn)
    variance_rate = torch.full_like(size, eta**2)
    if sampler == "flow_sde":
        level = torch.where(before == 1, after if sigma_max is None else as_levels(sigma_max), before)
        if not bool(((level >= 0) & (level < 1)).all()):
            raise ConfigError(f"sigma_max {level.tolist()} must lie in [0, 1): it stands in for sigma = 1")
        variance_rate = variance_rate * before / (1 - level)
    drift = variance_rate / (2 * before)
    return StepCoefficients(1 - drift * size, -(1 + drift * (1 - before)) * size, (variance_rate * size).sqrt())


def step_mean_std(
    x: Float[Tensor, " batch *dims"],
    v: Float[Tensor, "..."],
    sigma: Level,
    sigma_next: Level,
    sampler: str = "flow_sde",
    eta: float | int = 0.7,
    sigma_max: Level | None = None,
) -> tuple[Float[Tensor, " batch *dims"], Float[Tensor, " batch *ones"]]:
    """Mean and standard deviation of the plain, unguided step: mu and sig_step.

    These, not the guided ones, belong in `log_ratio` and in the KL to a reference policy.

    Args:
        x: the sample at level `sigma`.
        v: the policy's velocity at `x`, same shape; gradients flow through it.
        sigma: as in `step_coefficients`.
        sigma_next: as in `step_coefficients`.
        sampler: as in `step_coefficients`.
        eta: as in `step_coefficients`.
        sigma_max: as in `step_coefficients`.

    Returns:
        The mean, shape of `x`, and the standard deviation, `(batch, 1, ..., 1)`; float32, or float64 if `x` or `v` is.

    Raises:
        ConfigError: an unknown sampler, or a number out of its range.
        ValueError: shapes that do not agree.
    """
    return _mean_std(x, v, step_coefficients(sigma, sigma_next, sampler, eta, sigma_max))


def _mean_std(x: Tensor, v: Tensor, coefficients: StepCoefficients) -> tuple[Tensor, Tensor]:
    _check_shape("v", v, x, shared=False)
    work = torch.promote_types(torch.promote_types(x.dtype, v.dtype), torch.float32)
    x, v = x.to(work), v.to(work)
    on_x, on_v, std = (per_sample(number, x) for number in coefficients)
    return on_x * x + on_v * v, std


def sde_step(
    x: Float[Tensor, " batch *dims"],
    v: Float[Tensor, "..."],
    sigma: Level,
    sigma_next: Level,
    *,
    sampler: str = "flow_sde",
    eta: float | int = 0.7,
    noise: Float[Tensor, "..."] | None = None,
    x_next: Float[Tensor, "..."] | None = None,
    anchor: Float[Tensor, "..."] | None = None,
    lam: Level = 0.0,
    sigma_max: Level | None = None,
    target: Float[Tensor, "..."] | None = None,
    generator: torch.Generator | None = None,
    storage_dtype: torch.dtype | None = None,
) -> SDEStep:
    """Take one step, or evaluate one that was taken.

    With guidance (P, arXiv 2603.01163) the noise is mixed with the direction of `x_star`, the Euler step towards the
    anchor: `z_mix = lam (x_star - mu) / sig_step + (1 - lam) z`, `x' = mu + sig_step z_mix`. That is
    `x' = mu_new + sig_new z` with `mu_new = (1 - lam) mu + lam x_star`, `sig_new = (1 - lam) sig_step`, the form used
    here: it never divides by sig_step, so it holds at eta = 0 as well.

    `x'` is rounded to the storage dtype BEFORE its log-probability is taken, so re-evaluating the stored `x'` with the
    same `v` gives the same number to the bit: the on-policy ratio is exactly 1. No gradient flows through `x'`,
    `x_star` or the anchor; only `mu` depends on the policy.

    `log_prob` is that of `Normal(mu_new, sig_new)`, averaged. Two exceptions. A deterministic step (`ode`, eta = 0,
    lam = 1, `cps` at sigma_next = 0) has no density: 0, with no gradient. `cps` follows its published unnormalised
    form, `-mean((x' - mu)^2)`: the log-ratio it gives is the Gaussian one times `2 sig_step^2`, so a ratio of tempered
    likelihoods, which fades as sigma falls and needs clip ranges of its own. Under guidance its residual is divided by
    (1 - lam), so that its log-ratio, like the Gaussian one, does not depend on lam (I).

    For training prefer `log_ratio`: the difference of two `log_prob` loses digits as lam nears 1.

    Args:
        x: the sample at level `sigma`; any float dtype.
        v: the policy's velocity at `x`, same shape.
        sigma: level before the step, in (0, 1]; a number or `(batch,)`.
        sigma_next: level after it, in [0, sigma].
        sampler: one of `SAMPLERS`.
        eta: noise strength; see `step_coefficients`.
        noise: z, shape of `x`; None draws it.
        x_next: a step already taken, to be re-evaluated; not together with `noise`.
        anchor: latent of a preferred retouch of the same photo, shape of `x` or its first dimension 1.
        lam: guidance weight in [0, 1]; a number or `(batch,)`; 0 is the plain step to the bit.
        sigma_max: what stands for sigma = 1 in flow_sde's denominator; None takes `sigma_next`.
        target: use this in place of `x_star`. The policy's own mean at the rollout attenuates the noise by (1 - lam)
            with no anchor and with the ratio of DPG (I: the control arm of the ablation).
        generator: for the noise; None is torch's global one.
        storage_dtype: what `x'` is rounded to; None is the dtype of `x`.

    Raises:
        ConfigError: an unknown sampler, a number out of its range, or lam > 0 with nothing to pull to.
        ValueError: shapes that do not agree, or both of two exclusive arguments.
    """
    coefficients = step_coefficients(sigma, sigma_next, sampler, eta, sigma_max)
    mean, std = _mean_std(x, v, coefficients)
    weights = guidance_weights(lam)
    own = per_sample(1 - weights, mean)
    if bool(weights.any()):
        mean = own * mean + per_sample(weights, mean) * _pulled_to(x, anchor, target, sigma, sigma_next, mean)
        std = own * std
    if x_next is None:
        x_next = mean
        if bool(((1 - weights) * coefficients.std).any()):
            x_next = mean + std * draw_noise(mean, noise, generator)
    elif noise is not None:
        raise ValueError("noise takes a step and x_next re-evaluates one: give one of them")
    _check_shape("x_next", x_next, x, shared=False)
    x_next = x_next.detach().to(storage_dtype or x.dtype)
    log_prob = _log_prob(x_next.to(mean.dtype) - mean, std, own if sampler == "cps" else None)
    return SDEStep(x_next, log_prob, mean, std)


def log_ratio(
    mean_new: Float[Tensor, "..."],
    mean_old: Float[Tensor, "..."],
    std: float | Float[Tensor, "..."],
    noise: Float[Tensor, "..."],
    *,
    sampler: str = "flow_sde",
    keep: int = 1,
) -> Float[Tensor, " batch *kept"]:
    """log p_new(x') - log p_old(x') of a taken step, in the form that does not know lam (I).

    Under guidance `(x' - mu_new(theta)) / sig_new = z + (mu_old - mu_theta) / sig_step`: the factors (1 - lam) cancel.
    With `d = (mu_old - mu_theta) / sig_step` the log-ratio is `-mean(d (z + d / 2))`: exactly 0 on-policy, with exact
    gradient, and finite for every lam below 1. z is the noise as drawn, not one recovered from the rounded x': rounding
    is a function of the drawn step that does not depend on the policy, so the ratio of the step as drawn is the exact
    weight of all that follows from it, while rounding errors divided by sig_new would be noise in it.

    `cps` keeps the normalisation of its `log_prob`: the same times `2 sig_step^2`.

    All arguments broadcast over the batch: a first drawn step that a group shares may pass means of batch 1 with the
    noise of every member, and the gradient reaches the one mean summed.

    Args:
        mean_new: unguided mean of the policy now, `(batch or 1, ...)`, from `step_mean_std`; gradients flow.
        mean_old: unguided mean at the rollout, same shape.
        std: unguided sig_step, > 0; a float, `(batch,)` or `(batch, 1, ..., 1)`.
        noise: the standard normal z that the step was taken with, `(batch, ...)`.
        sampler: one of `SAMPLERS`.
        keep: leading dimensions that are kept; 2 gives one ratio a token, whose mean over tokens is the sample's.

    Returns:
        `(batch,)` or more, mean over all other dimensions, float32 or float64.

    Raises:
        ConfigError: an unknown sampler.
        ValueError: std is not above 0; a deterministic step has no ratio.
    """
    if sampler not in SAMPLERS:
        raise ConfigError(f"sampler {sampler!r} is unknown; choose one of {', '.join(SAMPLERS)}")
    work = torch.promote_types(mean_new.dtype, torch.float32)
    gap = mean_old.detach().to(work) - mean_new.to(work)
    scale = torch.as_tensor(std).detach().to(gap)
    if scale.ndim == 1:
        scale = scale.reshape(-1, *[1] * (gap.ndim - 1))
    if not bool((scale > 0).all()):
        raise ValueError("std must be above 0: a deterministic step has no ratio")
    noise = noise.detach().to(work)
    shift = gap / scale
    terms = -shift * (noise + shift / 2) * (2 * scale**2 if sampler == "cps" else 1)
    return terms.flatten(keep).mean(-1)


def draw_noise(
    like: Float[Tensor, " batch *dims"],
    noise: Float[Tensor, "..."] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " batch *dims"]:
    """Standard normal noise in the shape, dtype and on the device of `like`: what is given, or a draw.

    Args:
        like: the sample.
        noise: used if given, after a look at its shape.
        generator: may live on the CPU while `like` does not; None is torch's global one.

    Raises:
        ValueError: `noise` of another shape.
    """
    if noise is None:
        device = like.device if generator is None else generator.device
        return torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype).to(like.device)
    _check_shape("noise", noise, like, shared=False)
    return noise.detach().to(like)


def _pulled_to(x: Tensor, anchor: Tensor | None, target: Tensor | None, sigma: Level, sigma_next: Level, like: Tensor) -> Tensor:
    if (anchor is None) == (target is None):
        raise ConfigError("lam above 0 needs an anchor (or a target, not both); give one, or set lam to 0")
    if target is not None:
        _check_shape("target", target, x, shared=True)
        return target.detach().to(like)
    assert anchor is not None
    _check_shape("anchor", anchor, x, shared=True)
    return x_star(x.detach().to(like), anchor.detach().to(like), sigma, sigma_next)


def _log_prob(residual: Tensor, std: Tensor, own: Tensor | None) -> Tensor:
    """Averaged; `own` is (1 - lam) and asks for the unnormalised form of cps."""
    stochastic = std > 0
    scale = torch.where(stochastic, std if own is None else own, 1.0)
    squares = (residual / scale) ** 2
    density = -squares if own is not None else -squares / 2 - scale.log() - HALF_LOG_TWO_PI
    averaged = density.reshape(density.shape[0], -1).mean(1)
    return torch.where(stochastic.reshape(-1), averaged, 0.0)


def _check_shape(name: str, tensor: Tensor, x: Tensor, *, shared: bool) -> None:
    """`shared` allows one for the whole batch."""
    if tensor.shape != x.shape and not (shared and tensor.shape == (1, *x.shape[1:])):
        raise ValueError(f"{name} of shape {tuple(tensor.shape)} must have the shape of x, {tuple(x.shape)}")
