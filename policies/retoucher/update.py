"""The policy update: a surrogate over the drawn steps, the group's first drawn step evaluated and differentiated once."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpg.sampler import TakenStep
from policies.retoucher.model.backbone import Backbone, Condition
from policies.retoucher.rollout import Rollout, mix
from portraitkit.grpo import clipped_surrogate, divergence_surrogate, gaussian_kl, guard_log_ratio, neighbor_log_ratio


@dataclass(frozen=True)
class Loss:
    """What an update minimises."""

    method: Literal["grpo", "dppo", "nft", "neighbor"] = "grpo"  # see `--loss`
    clip_range: float = 1e-4  # of the ratio; small, because log-probabilities are means over the latent's dimensions
    kl_threshold: float = 1e-5  # largest divergence from the old policy with Flow-DPPO
    ratio: Literal["ppo", "guard"] = "ppo"  # the likelihood ratio as it is, or standardised per step as GRPO-Guard does
    kl_beta: float = 0.0  # weight of the Gaussian KL to the base policy; where a step has no noise, of half the squared distance
    step_weight: Literal["equal", "attenuation"] = "equal"  # of a guided step: 1, or "attenuation", 1 - lam
    beta: float = 1.0  # of DiffusionNFT's implicit policies
    anchor_weight: float = 0.0  # of an anchor against all candidates of its photo, with DiffusionNFT


@dataclass(frozen=True)
class UpdateFigures:
    """What one accumulation of gradients saw."""

    loss: float  # surrogate plus KL
    kl: float  # mean Gaussian KL to the base policy; 0 when it is not used
    ratio_deviation: float  # largest |ratio - 1|
    clipped: float  # share of candidates and steps outside the clip range, or blocked by Flow-DPPO's threshold
    evaluations: int  # network evaluations, a backward counted as two

    @classmethod
    def total(cls, parts: Sequence[Self]) -> Self:
        """The figures of an update out of those of its parts."""
        largest = max(part.ratio_deviation for part in parts)
        sums = {name: sum(getattr(part, name) for part in parts) for name in ("loss", "kl", "clipped", "evaluations")}
        return cls(ratio_deviation=largest, **sums)


NO_FIGURES = UpdateFigures(0.0, 0.0, 0.0, 0.0, 0)  # Of a process that has no group of the update


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
    advantages: Float[Tensor, " members *tokens"],
    photos: Int[Tensor, " k"],
    loss: Loss,
    *,
    micro_batch: int,
    candidates: int | None = None,
    in_step: Callable[[list[int]], list[int]] | None = None,
    anchors: Int[Tensor, " n"] | None = None,
) -> UpdateFigures:
    """Add the gradients of the mean loss over the candidates of `photos` and the drawn steps to the parameters.

    With `candidates`, those of an update whose other candidates are in other processes, it is the sum over those of `photos` divided by
    them: gradients, loss, kl and clipped of all processes then add up to those of the whole update, however it was divided.

    `in_step` makes this process evaluate as often as the others must: it takes the backwards of each drawn step and returns those of the
    process with most.

    With `anchors`, rows of the rollout, only these take their steps again, each among all candidates of its group (Neighbor GRPO): the mean
    is then over the anchors, of sums over the candidates, and `candidates` counts anchors.

    Advantages are one a candidate, or one a token of it (`--credit local`): then ratio and clipping are a token's, too. They, and all
    indices, are on the CPU.
    Groups whose advantages are all 0 are left out of the computation; they count in the mean, as they would with loss 0.
    At most `micro_batch` candidates (photos, where their candidates share a step) go forward and backward at once: the loss is a sum
    over candidates, so how it is cut changes nothing but rounding.
    """
    retaken = torch.arange(len(rollout.photo_of)) if anchors is None else anchors
    terms = (candidates or int(torch.isin(rollout.photo_of[retaken], photos).sum())) * max(1, len(rollout.steps))
    live = torch.tensor([int(p) for p in photos if advantages[rollout.photo_of == p].abs().sum() > 0], dtype=torch.long)
    their_members = retaken[torch.isin(rollout.photo_of[retaken], live)]
    total = kl = 0.0
    deviation, clipped, evaluations = 0.0, 0.0, 0
    rows_of = [live if step.shared else their_members for step in rollout.steps]
    calls = [math.ceil(len(rows) / micro_batch) for rows in rows_of]
    for step, rows, count in zip(rollout.steps, rows_of, calls if in_step is None else in_step(calls), strict=True):
        weight = 1 - step.lam if loss.step_weight == "attenuation" else 1.0
        for start in range(0, count * micro_batch, micro_batch):
            chosen = rows[start : start + micro_batch] if start < len(rows) else torch.tensor([0])
            part = _step_terms(backbone, condition, rollout, step, advantages, chosen, loss)
            if start >= len(rows):
                (0.0 * part.surrogate.sum()).backward()  # only to keep step
                continue
            (weight * (part.surrogate.sum() + loss.kl_beta * part.kl.sum()) / terms).backward()
            total += weight * float(part.surrogate.detach().sum() + loss.kl_beta * part.kl.detach().sum()) / terms
            kl += float(part.kl.detach().sum()) / terms
            deviation = max(deviation, float((part.log_ratio.detach().exp() - 1).abs().max()))
            clipped += float(part.clipped.float().flatten(1).mean(1).sum())
            evaluations += part.evaluations
    return UpdateFigures(total, kl, deviation, clipped / max(1, terms), evaluations)


def draw_anchors(groups: Sequence[int], group_size: int, count: int, *, seed: int, iteration: int) -> Int[Tensor, " n"]:
    """Rows of `count` candidates of each of these groups of a training step, whichever process has them."""
    orders = [torch.randperm(group_size, generator=torch.Generator().manual_seed(mix(seed, iteration, group, 0, 1))) for group in groups]
    return torch.cat([row * group_size + order[:count].sort().values for row, order in enumerate(orders)])


@dataclass(frozen=True)
class _StepTerms:
    surrogate: Float[Tensor, " members"]
    kl: Float[Tensor, " members"]
    log_ratio: Float[Tensor, " members *others"]
    clipped: Bool[Tensor, " members others"]
    evaluations: int


def _step_terms(
    backbone: Backbone,
    condition: Condition,
    rollout: Rollout,
    step: TakenStep,
    advantages: Float[Tensor, " members *tokens"],
    rows: Int[Tensor, " k"],
    loss: Loss,
) -> _StepTerms:
    """Loss terms of one drawn step for some of its rows: candidates, or photos with all of their candidates where they share the step."""
    members = torch.isin(rollout.photo_of, rows).nonzero()[:, 0] if step.shared else rows
    spread = torch.searchsorted(rows, rollout.photo_of[members]) if step.shared else torch.arange(len(members))
    conditions = condition.select(rows if step.shared else rollout.photo_of[rows])
    x, std = step.x[rows], float(step.std.flatten()[0])  # a rollout has one noise level a step

    def mean_of_policy() -> Tensor:
        v = backbone.velocity(x, float(step.sigma), conditions)
        return step.sampler.mean_std(x, v, step.sigma, step.sigma_next)[0]

    mean = mean_of_policy()
    evaluations = 3 * len(x) * backbone.forwards
    old = step.mean[rows]
    guard, neighbor = loss.ratio == "guard", loss.method == "neighbor"
    if neighbor:
        rollouts, photo_of = (-1, int((rollout.photo_of == 0).sum())), rollout.photo_of[rows]
        others, worth = step.x_next.unflatten(0, rollouts)[photo_of], advantages.unflatten(0, rollouts)[photo_of].to(mean)
        ratio = neighbor_log_ratio(mean, old, others.to(mean), keep=advantages.ndim)
    else:
        worth = advantages[members].to(mean)
        ratio = step.sampler.log_ratio(mean[spread], old[spread], std, step.noise[members], keep=advantages.ndim, gaussian=guard)
    if guard:
        ratio = guard_log_ratio(ratio, old[spread], mean[spread], std)
    if loss.method == "dppo":
        away = gaussian_kl(mean.detach(), old, std, keep=advantages.ndim)[spread]
        surrogate, clipped = divergence_surrogate(ratio, worth, away, loss.kl_threshold)
    else:
        surrogate, clipped = clipped_surrogate(ratio, worth, loss.clip_range), (ratio.exp() - 1).abs() > loss.clip_range
    surrogate = (surrogate.sum(1) if neighbor else surrogate).reshape(len(members), -1).mean(1)
    kl = torch.zeros_like(surrogate)
    if loss.kl_beta > 0:
        with torch.no_grad(), base_policy(backbone):
            reference = mean_of_policy()
        evaluations += len(x) * backbone.forwards
        kl = gaussian_kl(mean, reference, std or 1.0)[spread]
    return _StepTerms(surrogate, kl, ratio, clipped.reshape(len(members), -1), evaluations)
