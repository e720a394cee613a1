"""Rollouts: a group of candidates for each photo, stochastic only at the drawn steps, everything before them shared by the group.

With one initial noise per group the ODE steps before the first drawn step are the same for all its members, and so is the
velocity at that step: they are computed once a group. That is exact, and the update does the same for that step's gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpg.guidance import lambda_schedule
from dpg.sde import sde_step, step_coefficients, step_mean_std
from dpg.windows import stochastic_steps
from policies.retoucher.config import RetoucherConfig
from policies.retoucher.model.backbone import Backbone, Condition, Latents
from policies.retoucher.seeds import mix
from portraitkit.errors import ConfigError
from portraitkit.processor import bf16_autocast


@dataclass(frozen=True)
class StepPlan:
    """Which steps of a rollout are stochastic, and how.

    Attributes:
        sigmas: noise levels from 1 to 0, one more than there are steps.
        drawn: indices of the stochastic steps, ascending.
        lams: guidance of every step, 0 where nothing pulls and nothing is attenuated.
        sampler: of the stochastic steps.
        eta: their noise level.
        anchored: whether guidance pulls to an anchor; if not it only attenuates the noise.
    """

    sigmas: list[float]
    drawn: list[int]
    lams: list[float]
    sampler: str
    eta: float
    anchored: bool


@dataclass(frozen=True)
class TakenStep:
    """One drawn step as it was taken; what the update needs to re-evaluate it.

    Attributes:
        index: of the step.
        x: the state before it: one row a photo if `shared`, else one a candidate.
        z: the standard normal noise of every candidate; log-ratios depend on it alone, whatever the guidance was.
        mean: the unguided mean under the policy that rolled out, rows as `x`.
        std: the unguided standard deviation.
        shared: whether all members of a group started this step from the same state.
    """

    index: int
    x: Float[Tensor, "rows tokens channels"]
    z: Float[Tensor, "members tokens channels"]
    mean: Float[Tensor, "rows tokens channels"]
    std: float
    shared: bool


@dataclass(frozen=True)
class Rollout:
    """Candidates of a batch of photos: member m belongs to photo `photo_of[m]`; groups are contiguous.

    Attributes:
        latents: final latents, one row a candidate.
        photo_of: index of each candidate's photo.
        steps: the drawn steps as taken.
        evaluations: network evaluations spent (rows through the transformer).
    """

    latents: Latents
    photo_of: Int[Tensor, " members"]
    steps: list[TakenStep]
    evaluations: int


def plan_steps(config: RetoucherConfig, sigmas: list[float], iteration: int) -> StepPlan:
    """The steps of one training iteration; equal seed and iteration give equal steps."""
    kind = config.lam_schedule if config.dpg else "zero"
    lams = lambda_schedule(config.num_steps, kind, config.lam_max, sigmas=sigmas[:-1])
    drawn = stochastic_steps(
        config.window,
        config.num_steps,
        seed=config.seed,
        iteration=iteration,
        segments=config.segments,
        start=config.window_start,
        width=config.window_width,
        stride=config.window_stride,
        every=config.window_every,
        lambdas=lams,
    )
    return StepPlan(sigmas, drawn, lams, config.sampler, config.eta, anchored=config.anchor != "none")


def check_plan(config: RetoucherConfig) -> None:
    """Refuse sampling settings that cannot train anything, before a model is loaded.

    Raises:
        ConfigError: the window does not fit, the sampler refuses eta, or no step can be stochastic.
    """
    sigmas = [1 - step / config.num_steps for step in range(config.num_steps + 1)]
    plan = plan_steps(config, sigmas, 0)
    if not plan.drawn:
        raise ConfigError(
            f"--num-steps {config.num_steps}, --window {config.window}, --lam-max {config.lam_max}: no step can be stochastic "
            "(the last one never is, nor one with guidance 1); take more steps or less guidance"
        )
    step_coefficients(sigmas[plan.drawn[0]], sigmas[plan.drawn[0] + 1], config.sampler, config.eta, sigmas[1])


@dataclass(frozen=True)
class Noise:
    """All noise of a rollout, drawn before its first step: how the rollout is cut into parts does not change it.

    Attributes:
        start: initial latents, one row a photo if a group shares them, else one a candidate.
        steps: noise of every candidate at each drawn step, by the step's index.
        group_size: candidates a photo.
    """

    start: Latents
    steps: dict[int, Float[Tensor, "members tokens channels"]]
    group_size: int


def draw_noise(
    backbone: Backbone, plan: StepPlan, photos: int, *, group_size: int, shared_noise: bool, generator: torch.Generator
) -> Noise:
    """The noise of `photos` groups: the initial one first, then that of each drawn step."""
    start = backbone.noise(photos if shared_noise else photos * group_size, generator)
    steps = {index: torch.randn(photos * group_size, *start.shape[1:], generator=generator) for index in plan.drawn}
    return Noise(start, steps, group_size)


def noise_of_groups(
    backbone: Backbone, plan: StepPlan, groups: Sequence[int], *, group_size: int, shared_noise: bool, seed: int, iteration: int
) -> Noise:
    """The noise of some groups of a training step, each candidate's from its own generator.

    Its seed is made of the run's seed, the step, the group's number in the step and the candidate's in the group: a group has the same
    noise whichever process rolls it out and whatever other groups that one has, and no two candidates share any.

    Args:
        backbone: the policy.
        plan: the steps.
        groups: numbers of the groups in the step.
        group_size: candidates a group.
        shared_noise: one initial noise a group instead of one a candidate.
        seed: of the run.
        iteration: training step.
    """
    starts: list[Tensor] = []
    steps: dict[int, list[Tensor]] = {index: [] for index in plan.drawn}
    for group in groups:
        for member in range(-1 if shared_noise else 0, group_size):
            generator = torch.Generator().manual_seed(mix(seed, iteration, group, member + 1))
            if member < 0 or not shared_noise:
                starts.append(backbone.noise(1, generator))
            if member >= 0:
                for index in plan.drawn:
                    steps[index].append(torch.randn(1, *starts[0].shape[1:], generator=generator))
    return Noise(torch.cat(starts), {index: torch.cat(drawn) for index, drawn in steps.items()}, group_size)


def roll_out(
    backbone: Backbone,
    condition: Condition,
    anchors: Latents | None,
    plan: StepPlan,
    *,
    group_size: int,
    shared_noise: bool,
    generator: torch.Generator,
    batch: int,
    bf16: bool = False,
) -> Rollout:
    """Draw `group_size` candidates for each photo.

    Args:
        backbone: the policy.
        condition: the encoded photos.
        anchors: encoded anchors of the photos; None without guidance.
        plan: the steps.
        group_size: candidates a photo.
        shared_noise: one initial noise a photo instead of one a candidate.
        generator: of all noise.
        batch: candidates evaluated at once.
        bf16: evaluate the ODE steps that a candidate takes on its own in bfloat16. No ratio ever sees them.
    """
    noise = draw_noise(backbone, plan, len(condition), group_size=group_size, shared_noise=shared_noise, generator=generator)
    return roll_out_photos(backbone, condition, anchors, plan, noise, torch.arange(len(condition)), batch=batch, bf16=bf16)


@torch.no_grad()
def roll_out_photos(
    backbone: Backbone,
    condition: Condition,
    anchors: Latents | None,
    plan: StepPlan,
    noise: Noise,
    photos: Int[Tensor, " k"],
    *,
    batch: int,
    bf16: bool = False,
) -> Rollout:
    """Draw the candidates of some of the photos.

    Args:
        backbone: the policy.
        condition: the encoded photos, all of them.
        anchors: encoded anchors of all photos; None without guidance.
        plan: the steps.
        noise: of all photos.
        photos: indices of those that are rolled out, consecutive.
        batch: candidates evaluated at once.
        bf16: see `roll_out`.

    Returns:
        The part of the whole rollout; `photo_of` counts all photos. `join` puts parts together.
    """
    group_size, shared_noise = noise.group_size, len(noise.start) == len(condition)
    own = torch.arange(len(photos)).repeat_interleave(group_size)
    photo_of = photos[own]
    members = slice(int(photos[0]) * group_size, (int(photos[-1]) + 1) * group_size)
    rows = photos if shared_noise else photo_of
    x = noise.start[photos] if shared_noise else noise.start[members]
    steps: list[TakenStep] = []
    evaluations = 0
    for index, (sigma, sigma_next) in enumerate(zip(plan.sigmas[:-1], plan.sigmas[1:], strict=True)):
        with bf16_autocast(bf16 and index not in plan.drawn and len(x) == len(photo_of)):
            v = evaluate(backbone, x, sigma, condition, rows, batch)
        evaluations += len(x) * backbone.forwards
        if index not in plan.drawn:
            x = x + (sigma_next - sigma) * v
            continue
        settings = {"sampler": plan.sampler, "eta": plan.eta, "sigma_max": plan.sigmas[1]}
        mean, std = step_mean_std(x, v, sigma, sigma_next, **settings)
        shared = len(x) < len(photo_of)
        z = noise.steps[index][members]
        steps.append(TakenStep(index, x, z, mean, float(std.flatten()[0]), shared))
        if shared:
            x, v, mean, rows = x[own], v[own], mean[own], photo_of
        pull = {"anchor": anchors[rows]} if plan.anchored and anchors is not None else {"target": mean}
        lam = plan.lams[index]
        x = sde_step(x, v, sigma, sigma_next, noise=z, lam=lam, **(pull if lam > 0 else {}), **settings).x_next
    if len(x) < len(photo_of):
        x = x[own]
    return Rollout(x, photo_of, steps, evaluations)


def join(parts: Sequence[Rollout]) -> Rollout:
    """One rollout out of those of consecutive photos."""
    if len(parts) == 1:
        return parts[0]
    steps = [
        replace(
            taken[0],
            x=torch.cat([step.x for step in taken]),
            z=torch.cat([step.z for step in taken]),
            mean=torch.cat([step.mean for step in taken]),
        )
        for taken in zip(*(part.steps for part in parts), strict=True)
    ]
    latents, photo_of = (torch.cat([getattr(part, name) for part in parts]) for name in ("latents", "photo_of"))
    return Rollout(latents, photo_of, steps, sum(part.evaluations for part in parts))


def evaluate(
    backbone: Backbone, x: Latents, sigma: float, condition: Condition, rows: Int[Tensor, " n"], batch: int
) -> Float[Tensor, "n tokens channels"]:
    """Velocities of many rows, `batch` at a time; row i is conditioned on photo `rows[i]`."""
    parts = [
        backbone.velocity(x_part, sigma, condition.select(row_part))
        for x_part, row_part in zip(x.split(batch), rows.split(batch), strict=True)
    ]
    return torch.cat(parts)
