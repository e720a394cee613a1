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

import torch
from jaxtyping import Float
from torch import Tensor

from dpg.levels import Level
from dpg.sampler import SAMPLERS, Pull, Sampler, SDEStep, StepCoefficients, draw_noise

__all__ = ["SAMPLERS", "SDEStep", "StepCoefficients", "draw_noise", "log_ratio", "sde_step", "step_coefficients"]


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
        ValueError: an unknown sampler, or a number out of its range.
    """
    return Sampler(sampler, eta, sigma_max).coefficients(sigma, sigma_next)


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
        ValueError: an unknown sampler, a number out of its range, or lam > 0 with nothing to pull to.
        ValueError: shapes that do not agree, or both of two exclusive arguments.
    """
    law, pull = Sampler(sampler, eta, sigma_max), Pull(lam, anchor, target)
    mean, std = law.mean_std(x, v, sigma, sigma_next)
    levels = (sigma, sigma_next)
    return law.finish(x, mean, std, levels, pull, noise=noise, x_next=x_next, generator=generator, storage_dtype=storage_dtype)


def log_ratio(
    mean_new: Float[Tensor, "..."],
    mean_old: Float[Tensor, "..."],
    std: float | Float[Tensor, "..."],
    noise: Float[Tensor, "..."],
    *,
    sampler: str = "flow_sde",
    keep: int = 1,
    gaussian: bool = False,
) -> Float[Tensor, " batch *kept"]:
    """log p_new(x') - log p_old(x') of a taken step, in the form that does not know lam (I).

    Under guidance `(x' - mu_new(theta)) / sig_new = z + (mu_old - mu_theta) / sig_step`: the factors (1 - lam) cancel.
    With `d = (mu_old - mu_theta) / sig_step` the log-ratio is `-mean(d (z + d / 2))`: exactly 0 on-policy, with exact
    gradient, and finite for every lam below 1. z is the noise as drawn, not one recovered from the rounded x': rounding
    is a function of the drawn step that does not depend on the policy, so the ratio of the step as drawn is the exact
    weight of all that follows from it, while rounding errors divided by sig_new would be noise in it.

    `cps` keeps the normalisation of its `log_prob`: the same times `2 sig_step^2`, unless `gaussian`.

    All arguments broadcast over the batch: a first drawn step that a group shares may pass means of batch 1 with the
    noise of every member, and the gradient reaches the one mean summed.

    Args:
        mean_new: unguided mean of the policy now, `(batch or 1, ...)`, from `Sampler.mean_std`; gradients flow.
        mean_old: unguided mean at the rollout, same shape.
        std: unguided sig_step, > 0; a float, `(batch,)` or `(batch, 1, ..., 1)`.
        noise: the standard normal z that the step was taken with, `(batch, ...)`.
        sampler: one of `SAMPLERS`.
        keep: leading dimensions that are kept; 2 gives one ratio a token, whose mean over tokens is the sample's.
        gaussian: that of the normal law whatever the sampler, as GRPO-Guard needs it, which adds a Gaussian KL.

    Returns:
        `(batch,)` or more, mean over all other dimensions, float32 or float64.

    Raises:
        ValueError: an unknown sampler.
        ValueError: std is not above 0; a deterministic step has no ratio.
    """
    return Sampler(sampler).log_ratio(mean_new, mean_old, std, noise, keep, gaussian)
