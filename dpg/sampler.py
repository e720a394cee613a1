"""A stochastic step as an object: `Sampler` takes it, `Pull` guides it, `TakenStep` keeps what a trainer re-evaluates.

Formulas, conventions and sources are in `dpg.sde`, whose functions are these objects' methods under the names of the papers' codes.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from dpg.guidance import guidance_weights, x_star
from dpg.levels import Level, as_levels, noise_levels, per_sample

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


@dataclass(frozen=True)
class Sampler:
    """A stochastic step: the one that `DPGScheduler` takes in a rollout and that a trainer re-evaluates in its update.

    Attributes:
        name: one of `SAMPLERS`.
        eta: noise strength, >= 0; in [0, 1] for `cps`. `ode` ignores it.
        sigma_max: what stands for sigma = 1 in flow_sde's denominator, in [0, 1); the second level of the schedule in
            Flow-GRPO's code. None takes `sigma_next`, which is that level.
    """

    name: str = "flow_sde"
    eta: float | int = 0.7
    sigma_max: Level | None = None

    def coefficients(self, sigma: Level, sigma_next: Level) -> StepCoefficients:
        """See `step_coefficients`."""
        before, after = noise_levels(sigma, sigma_next)
        _check_sampler(self.name)
        cps = self.name == "cps"
        if not 0 <= self.eta < math.inf or (cps and self.eta > 1):
            raise ValueError(f"eta {self.eta} is out of range for {self.name}: {'0 to 1' if cps else 'at least 0'}")
        size = before - after
        if self.name == "ode" or self.eta == 0:
            return StepCoefficients(torch.ones_like(size), -size, torch.zeros_like(size))
        if cps:
            kept, drawn = after * math.cos(self.eta * math.pi / 2), after * math.sin(self.eta * math.pi / 2)
            return StepCoefficients(1 - after + kept, kept * (1 - before) - (1 - after) * before, drawn)
        variance_rate = torch.full_like(size, self.eta**2)
        if self.name == "flow_sde":
            level = torch.where(before == 1, after if self.sigma_max is None else as_levels(self.sigma_max), before)
            if not bool(((level >= 0) & (level < 1)).all()):
                raise ValueError(f"sigma_max {level.tolist()} must lie in [0, 1): it stands in for sigma = 1")
            variance_rate = variance_rate * before / (1 - level)
        drift = variance_rate / (2 * before)
        return StepCoefficients(1 - drift * size, -(1 + drift * (1 - before)) * size, (variance_rate * size).sqrt())

    def mean_std(
        self, x: Float[Tensor, " batch *dims"], v: Float[Tensor, "..."], sigma: Level, sigma_next: Level
    ) -> tuple[Float[Tensor, " batch *dims"], Float[Tensor, " batch *ones"]]:
        """Mean and standard deviation of the plain, unguided step, mu and sig_step: for `log_ratio` and the KL to a reference.

        float32, or float64 if `x` or `v` is; gradients flow through the policy's velocity `v`. Levels and errors are `step_coefficients`'s.
        """
        _check_shape("v", v, x, shared=False)
        work = torch.promote_types(torch.promote_types(x.dtype, v.dtype), torch.float32)
        x, v = x.to(work), v.to(work)
        on_x, on_v, std = (per_sample(number, x) for number in self.coefficients(sigma, sigma_next))
        return on_x * x + on_v * v, std

    def take(
        self,
        x: Float[Tensor, " batch *dims"],
        v: Float[Tensor, "..."],
        sigma: Level,
        sigma_next: Level,
        *,
        noise: Float[Tensor, "..."] | None = None,
        pull: "Pull | None" = None,
        generator: torch.Generator | None = None,
        storage_dtype: torch.dtype | None = None,
        index: int | None = None,
    ) -> "TakenStep":
        """Take one step and keep what a trainer needs of it; the arguments are those of `sde_step`.

        Args:
            x: the sample at level `sigma`.
            v: the policy's velocity at `x`.
            sigma: level before the step.
            sigma_next: level after it.
            noise: z; None draws it.
            pull: guidance; None is the plain step.
            generator: for the noise.
            storage_dtype: what `x'` is rounded to; None is the dtype of `x`.
            index: the step's place in the rollout, kept in the record.

        Raises:
            ValueError: as in `sde_step`.
        """
        x, v, pull = x.detach(), v.detach(), pull or Pull()
        mean, std = self.mean_std(x, v, sigma, sigma_next)
        z = draw_noise(mean, noise, generator)
        step = self.finish(x, mean, std, (sigma, sigma_next), pull, noise=z, storage_dtype=storage_dtype)
        return TakenStep(self, x, step.x_next, z, mean, std, step.log_prob, sigma, sigma_next, pull.lam, index)

    def finish(
        self,
        x: Tensor,
        mean: Tensor,
        std: Tensor,
        levels: tuple[Level, Level],
        pull: "Pull",
        *,
        noise: Tensor | None = None,
        x_next: Tensor | None = None,
        generator: torch.Generator | None = None,
        storage_dtype: torch.dtype | None = None,
    ) -> SDEStep:
        """The step out of its unguided mean and standard deviation; the other arguments are those of `sde_step`."""
        weights = guidance_weights(pull.lam)
        rest = per_sample(1 - weights, mean)
        if bool(weights.any()):
            mean = rest * mean + per_sample(weights, mean) * pull.end(x, mean, levels)
            std = rest * std
        if x_next is None:
            x_next = mean
            if bool(((1 - weights) * self.coefficients(*levels).std).any()):  # `std` itself may be on a device, and would be waited for
                x_next = mean + std * draw_noise(mean, noise, generator)
        elif noise is not None:
            raise ValueError("noise takes a step and x_next re-evaluates one: give one of them")
        _check_shape("x_next", x_next, x, shared=False)
        x_next = x_next.detach().to(storage_dtype or x.dtype)
        return SDEStep(x_next, _log_prob(x_next.to(mean.dtype) - mean, std, rest if self.name == "cps" else None), mean, std)

    def log_ratio(
        self,
        mean_new: Float[Tensor, "..."],
        mean_old: Float[Tensor, "..."],
        std: float | Float[Tensor, "..."],
        noise: Float[Tensor, "..."],
        keep: int = 1,
        gaussian: bool = False,
    ) -> Float[Tensor, " batch *kept"]:
        """See `dpg.sde.log_ratio`."""
        _check_sampler(self.name)
        work = torch.promote_types(mean_new.dtype, torch.float32)
        gap = mean_old.detach().to(work) - mean_new.to(work)
        scale = torch.as_tensor(std).detach()
        if not bool((scale > 0).all()):
            raise ValueError("std must be above 0: a deterministic step has no ratio")
        scale = scale.to(gap) if scale.ndim else gap.new_full((), scale.item())
        if scale.ndim == 1:
            scale = scale.reshape(-1, *[1] * (gap.ndim - 1))
        noise = noise.detach().to(work)
        shift = gap / scale
        terms = -shift * (noise + shift / 2) * (2 * scale**2 if self.name == "cps" and not gaussian else 1)
        return terms.flatten(keep).mean(-1)


@dataclass(frozen=True, eq=False)
class Pull:
    """Guidance of one step.

    Attributes:
        lam: its weight in [0, 1]; a number or `(batch,)`; 0 is the plain step to the bit.
        anchor: latent of a preferred retouch of the same photo, shape of `x` or its first dimension 1.
        target: in place of `x_star`; "mean" is the policy's own: it attenuates the noise by (1 - lam) with no anchor and
            with the ratio of DPG (I: the control arm of the ablation).
    """

    lam: Level = 0.0
    anchor: Float[Tensor, "..."] | None = None
    target: Float[Tensor, "..."] | Literal["mean"] | None = None

    def end(self, x: Tensor, mean: Tensor, levels: tuple[Level, Level]) -> Tensor:
        """Where guidance pulls to, in the dtype of `mean`.

        Raises:
            ValueError: nothing to pull to, both of anchor and target, or another shape.
        """
        if (self.anchor is None) == (self.target is None):
            raise ValueError("lam above 0 needs an anchor (or a target, not both); give one, or set lam to 0")
        if isinstance(self.target, str):
            return mean.detach()
        if self.target is not None:
            _check_shape("target", self.target, x, shared=True)
            return self.target.detach().to(mean)
        assert self.anchor is not None
        _check_shape("anchor", self.anchor, x, shared=True)
        return x_star(x.detach().to(mean), self.anchor.detach().to(mean), *levels)


@dataclass(frozen=True, eq=False)
class TakenStep:
    """What is needed to weigh a stochastic step under another policy. Tensors are detached.

    Where all candidates of a group started from one state, `x`, `mean` and `std` may have one row a group instead.
    """

    sampler: Sampler
    x: Float[Tensor, " rows *dims"]
    """The sample before the step: with it the network is evaluated again."""
    x_next: Float[Tensor, " batch *dims"]
    """The sample after it, in the storage dtype."""
    noise: Float[Tensor, " batch *dims"]
    """The standard normal z as drawn, float32 or float64; log-ratios depend on it alone, whatever the guidance was."""
    mean: Float[Tensor, " rows *dims"]
    """Unguided mean of the policy that took the step, float32 or float64."""
    std: Float[Tensor, " rows *ones"]
    """Unguided sig_step."""
    log_prob: Float[Tensor, " batch"]
    """Of x_next, as `sde_step` gives it."""
    sigma: Level
    sigma_next: Level
    lam: Level
    index: int | None = None
    """The step's place in the rollout, 0 the noisiest."""

    @property
    def shared(self) -> bool:
        """Whether the members of a group share a row of `x`."""
        return len(self.x) < len(self.noise)

    def share(self, rows: Int[Tensor, " groups"]) -> Self:
        """The same with `x`, `mean` and `std` at `rows`: one candidate of each group, all of which started alike."""
        return replace(self, x=self.x[rows], mean=self.mean[rows], std=self.std[rows])

    def mean_under(self, v: Float[Tensor, "..."]) -> Float[Tensor, " rows *dims"]:
        """The unguided mean under velocity `v`, shape of `x`; gradients flow. For the ratio, or a KL."""
        return self.sampler.mean_std(self.x, v, self.sigma, self.sigma_next)[0]

    def log_ratio(self, v: Float[Tensor, "..."]) -> Float[Tensor, " batch"]:
        """log p_v(x') - log p_old(x'): exactly 0 where `v` is the velocity that took the step; see `dpg.sde.log_ratio`.

        Args:
            v: a policy's velocity at `self.x`, same shape; gradients flow.

        Raises:
            ValueError: the step is deterministic.
        """
        return self.sampler.log_ratio(self.mean_under(v), self.mean, self.std, self.noise)


def draw_noise(
    like: Float[Tensor, " batch *dims"], noise: Float[Tensor, "..."] | None = None, generator: torch.Generator | None = None
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


def _check_sampler(name: str) -> None:
    if name not in SAMPLERS:
        raise ValueError(f"sampler {name!r} is unknown; choose one of {', '.join(SAMPLERS)}")


def _log_prob(residual: Tensor, std: Tensor, rest: Tensor | None) -> Tensor:
    """Averaged; `rest` is (1 - lam) and asks for the unnormalised form of cps."""
    stochastic = std > 0
    scale = torch.where(stochastic, std if rest is None else rest, 1.0)
    squares = (residual / scale) ** 2
    density = -squares if rest is not None else -squares / 2 - scale.log() - HALF_LOG_TWO_PI
    averaged = density.reshape(density.shape[0], -1).mean(1)
    return torch.where(stochastic.reshape(-1), averaged, 0.0)


def _check_shape(name: str, tensor: Tensor, x: Tensor, *, shared: bool) -> None:
    """`shared` allows one for the whole batch."""
    if tensor.shape != x.shape and not (shared and tensor.shape == (1, *x.shape[1:])):
        raise ValueError(f"{name} of shape {tuple(tensor.shape)} must have the shape of x, {tuple(x.shape)}")
