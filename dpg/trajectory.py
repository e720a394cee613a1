"""A step as a trainer keeps it: taken once in the rollout, re-evaluated under every later policy."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dpg.levels import Level
from dpg.sde import draw_noise, log_ratio, sde_step, step_mean_std


@dataclass(frozen=True, eq=False)
class TakenStep:
    """What is needed to weigh a stochastic step under another policy. Tensors are detached."""

    x: Float[Tensor, " batch *dims"]
    """The sample before the step: with it the network is evaluated again."""
    x_next: Float[Tensor, " batch *dims"]
    """The sample after it, in the storage dtype."""
    noise: Float[Tensor, " batch *dims"]
    """The standard normal z as drawn, float32 or float64."""
    mean: Float[Tensor, " batch *dims"]
    """Unguided mean of the policy that took the step, float32 or float64."""
    std: Float[Tensor, " batch *ones"]
    """Unguided sig_step."""
    log_prob: Float[Tensor, " batch"]
    """Of x_next, as `sde_step` gives it."""
    sigma: Level
    sigma_next: Level
    lam: Level
    sampler: str
    eta: float | int
    sigma_max: Level | None
    index: int | None = None
    """The step's place in the rollout, 0 the noisiest."""

    def mean_under(self, v: Float[Tensor, "..."]) -> Float[Tensor, " batch *dims"]:
        """The unguided mean under velocity `v`, shape of `x`; gradients flow. For the ratio, or a KL."""
        mean, _ = step_mean_std(self.x, v, self.sigma, self.sigma_next, self.sampler, self.eta, self.sigma_max)
        return mean

    def log_ratio(self, v: Float[Tensor, "..."]) -> Float[Tensor, " batch"]:
        """log p_v(x') - log p_old(x'): exactly 0 where `v` is the velocity that took the step; see `dpg.sde.log_ratio`.

        Args:
            v: a policy's velocity at `self.x`, same shape; gradients flow.

        Raises:
            ValueError: the step is deterministic.
        """
        return log_ratio(self.mean_under(v), self.mean, self.std, self.noise, sampler=self.sampler)


def take_step(
    x: Float[Tensor, " batch *dims"],
    v: Float[Tensor, "..."],
    sigma: Level,
    sigma_next: Level,
    *,
    sampler: str = "flow_sde",
    eta: float | int = 0.7,
    noise: Float[Tensor, "..."] | None = None,
    anchor: Float[Tensor, "..."] | None = None,
    lam: Level = 0.0,
    sigma_max: Level | None = None,
    target: Float[Tensor, "..."] | None = None,
    generator: torch.Generator | None = None,
    storage_dtype: torch.dtype | None = None,
    index: int | None = None,
) -> TakenStep:
    """`sde_step`, with everything a trainer stores beside its result.

    Args:
        x: as in `sde_step`.
        v: as in `sde_step`.
        sigma: as in `sde_step`.
        sigma_next: as in `sde_step`.
        sampler: as in `sde_step`.
        eta: as in `sde_step`.
        noise: as in `sde_step`.
        anchor: as in `sde_step`.
        lam: as in `sde_step`.
        sigma_max: as in `sde_step`.
        target: as in `sde_step`.
        generator: as in `sde_step`.
        storage_dtype: as in `sde_step`.
        index: the step's place in the rollout, kept in the record.

    Raises:
        ConfigError: as in `sde_step`.
        ValueError: as in `sde_step`.
    """
    x, v = x.detach(), v.detach()
    mean, std = step_mean_std(x, v, sigma, sigma_next, sampler, eta, sigma_max)
    z = draw_noise(mean, noise, generator)
    step = sde_step(
        x,
        v,
        sigma,
        sigma_next,
        sampler=sampler,
        eta=eta,
        noise=z,
        anchor=anchor,
        lam=lam,
        sigma_max=sigma_max,
        target=target,
        storage_dtype=storage_dtype,
    )
    return TakenStep(x, step.x_next, z, mean, std, step.log_prob, sigma, sigma_next, lam, sampler, eta, sigma_max, index)
