"""The policy update: clipped surrogate over the drawn steps, the group's first drawn step evaluated and differentiated once."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpg.sde import log_ratio, step_mean_std
from policies.retoucher.config import RetoucherConfig
from policies.retoucher.model.backbone import Backbone, Condition
from policies.retoucher.rollout import Rollout, StepPlan, TakenStep
from portraitkit.grpo import clipped_surrogate, gaussian_kl, guard_log_ratio


@dataclass(frozen=True)
class UpdateFigures:
    """What one accumulation of gradients saw.

    Attributes:
        loss: surrogate plus KL.
        kl: mean Gaussian KL to the base policy; 0 when it is not used.
        ratio_deviation: largest |ratio - 1|.
        clipped: share of candidates and steps outside the clip range.
        evaluations: network evaluations, a backward counted as two.
    """

    loss: float
    kl: float
    ratio_deviation: float
    clipped: float
    evaluations: int

    @classmethod
    def total(cls, parts: Sequence[Self]) -> Self:
        """The figures of an update out of those of its parts."""
        largest = max(part.ratio_deviation for part in parts)
        sums = {name: sum(getattr(part, name) for part in parts) for name in ("loss", "kl", "clipped", "evaluations")}
        return cls(ratio_deviation=largest, **sums)


NO_FIGURES = UpdateFigures(0.0, 0.0, 0.0, 0.0, 0)
"""Of a process that has no group of the update."""


@contextmanager
def base_policy(backbone: Backbone) -> Iterator[None]:
    """The policy with its adapters off."""
    backbone.transformer.disable_adapters()
    try:
        yield
    finally:
        backbone.transformer.enable_adapters()


def accumulate_gradients(
    backbone: Backbone,
    condition: Condition,
    rollout: Rollout,
    plan: StepPlan,
    advantages: Float[Tensor, " members *tokens"],
    photos: Int[Tensor, " k"],
    config: RetoucherConfig,
    *,
    candidates: int | None = None,
    in_step: Callable[[list[int]], list[int]] | None = None,
) -> UpdateFigures:
    """Add the gradients of the mean loss over the candidates of `photos` and the drawn steps to the parameters.

    With `candidates`, those of an update whose other candidates are in other processes, it is the sum over those of `photos` divided by
    them: gradients, loss, kl and clipped of all processes then add up to those of the whole update, however it was divided.

    `in_step` makes this process evaluate as often as the others must: it takes the backwards of each drawn step and returns those of the
    process with most.

    Advantages are one a candidate, or one a token of it (`--credit local`): then ratio and clipping are a token's, too.
    Groups whose advantages are all 0 are left out of the computation; they count in the mean, as they would with loss 0.
    At most `config.micro_batch` candidates (photos, where their candidates share a step) go forward and backward at once: the loss is a sum
    over candidates, so how it is cut changes nothing but rounding.
    """
    members = torch.isin(rollout.photo_of, photos)
    terms = (candidates or int(members.sum())) * max(1, len(rollout.steps))
    each = advantages[0].numel()
    live = torch.tensor([int(p) for p in photos if advantages[rollout.photo_of == p].abs().sum() > 0], dtype=torch.long)
    their_members = torch.isin(rollout.photo_of, live).nonzero()[:, 0]
    loss = kl = 0.0
    deviation, clipped, evaluations = 0.0, 0.0, 0
    rows_of = [live if step.shared else their_members for step in rollout.steps]
    calls = [math.ceil(len(rows) / config.micro_batch) for rows in rows_of]
    for step, rows, count in zip(rollout.steps, rows_of, calls if in_step is None else in_step(calls), strict=True):
        weight = 1 - plan.lams[step.index] if config.step_weight == "attenuation" else 1.0
        for start in range(0, count * config.micro_batch, config.micro_batch):
            chosen = rows[start : start + config.micro_batch] if start < len(rows) else torch.tensor([0])
            part = _step_terms(backbone, condition, rollout, plan, step, advantages, chosen, config)
            if start >= len(rows):
                (0.0 * part.surrogate.sum()).backward()  # only to keep step
                continue
            (weight * (part.surrogate.sum() + config.kl_beta * part.kl.sum()) / terms).backward()
            loss += weight * float(part.surrogate.detach().sum() + config.kl_beta * part.kl.detach().sum()) / terms
            kl += float(part.kl.detach().sum()) / terms
            change = part.log_ratio.detach().exp() - 1
            deviation = max(deviation, float(change.abs().max()))
            clipped += int((change.abs() > config.clip_range).sum()) / each
            evaluations += part.evaluations
    return UpdateFigures(loss, kl, deviation, clipped / max(1, terms), evaluations)


@dataclass(frozen=True)
class _StepTerms:
    surrogate: Float[Tensor, " members"]
    kl: Float[Tensor, " members"]
    log_ratio: Float[Tensor, " members *tokens"]
    evaluations: int


def _step_terms(
    backbone: Backbone,
    condition: Condition,
    rollout: Rollout,
    plan: StepPlan,
    step: TakenStep,
    advantages: Float[Tensor, " members *tokens"],
    rows: Int[Tensor, " k"],
    config: RetoucherConfig,
) -> _StepTerms:
    """Loss terms of one drawn step for some of its rows: candidates, or photos with all of their candidates where they share the step."""
    members = torch.isin(rollout.photo_of, rows).nonzero()[:, 0] if step.shared else rows
    spread = torch.searchsorted(rows, rollout.photo_of[members]) if step.shared else torch.arange(len(members))
    conditions = condition.select(rows if step.shared else rollout.photo_of[rows])
    sigma, sigma_next = plan.sigmas[step.index], plan.sigmas[step.index + 1]
    x = step.x[rows]

    def mean_of_policy() -> Tensor:
        v = backbone.velocity(x, sigma, conditions)
        return step_mean_std(x, v, sigma, sigma_next, sampler=plan.sampler, eta=plan.eta, sigma_max=plan.sigmas[1])[0]

    mean = mean_of_policy()
    evaluations = 3 * len(x) * backbone.forwards
    old = step.mean[rows]
    ratio = log_ratio(mean[spread], old[spread], step.std, step.z[members], sampler=plan.sampler, keep=advantages.ndim)
    if config.ratio == "guard":
        ratio = guard_log_ratio(ratio, old[spread], mean[spread], step.std)
    surrogate = clipped_surrogate(ratio, advantages[members], config.clip_range).reshape(len(members), -1).mean(1)
    kl = torch.zeros_like(surrogate)
    if config.kl_beta > 0:
        with torch.no_grad(), base_policy(backbone):
            reference = mean_of_policy()
        evaluations += len(x) * backbone.forwards
        kl = gaussian_kl(mean, reference, step.std)[spread]
    return _StepTerms(surrogate, kl, ratio, evaluations)
