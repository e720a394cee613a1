"""The policy update: a surrogate over the drawn steps, the group's first drawn step evaluated and differentiated once; or DiffusionNFT's.

DiffusionNFT (arXiv 2509.16117) learns what a group's rewards teach on the forward process instead of on the sampler's steps. A candidate
`x0`, sampled by any solver, is noised again, `x_t = (1 - t) x0 + t e`. The policy's velocity `v` and that of the old policy, which drew the
candidates, make an implicit positive and an implicit negative policy,

    v+ = (1 - beta) v_old + beta v,    v- = (1 + beta) v_old - beta v,

and with `r` in [0, 1], the candidate's standing in its group, the loss is `r |x0+ - x0|^2 + (1 - r) |x0- - x0|^2`, `x0+ = x_t - t v+`.
No likelihood, no noise in the pictures, and no trajectory is kept.

The old policy is a moving average of the policy (`--old-policy-decay`); without one it is the policy as an update begins, which drew the
candidates where a step has one update. The candidates of a group are noised alike: what they have in common then falls out of the gradient,
wholly at t = 1. The code of the paper divides each term by its own mean absolute error, which would bring that back; ours does not.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpg.sampler import TakenStep
from policies.retoucher.model.backbone import Backbone, Condition, Latents
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
    evaluations, seen = 0, list[Tensor]()
    advantages = advantages.to(rollout.latents.device)
    rows_of = [live if step.shared else their_members for step in rollout.steps]
    calls = [math.ceil(len(rows) / micro_batch) for rows in rows_of]
    for step, rows, count in zip(rollout.steps, rows_of, calls if in_step is None else in_step(calls), strict=True):
        weight = float(1 - step.lam) if loss.step_weight == "attenuation" else 1.0
        rows = rows.to(step.x.device)
        for start in range(0, count * micro_batch, micro_batch):
            chosen = rows[start : start + micro_batch] if start < len(rows) else rows.new_zeros(1)
            part = _step_terms(backbone, condition, rollout, step, advantages, chosen, loss)
            if start >= len(rows):
                (0.0 * part.surrogate.sum()).backward()  # only to keep step
                continue
            term, kl = part.surrogate.sum() + loss.kl_beta * part.kl.sum(), part.kl.detach().sum()
            (weight * term / terms).backward()
            away, outside = (part.log_ratio.detach().exp() - 1).abs().max(), part.clipped.float().flatten(1).mean(1).sum()
            term, kl = weight * term.detach().double() / terms, kl.double() / terms
            seen.append(torch.stack([term, kl, away.double(), outside.double()]))
            evaluations += part.evaluations
    total, kl, away, outside = _columns(seen, 4)
    return UpdateFigures(sum(total), sum(kl), max(away), sum(outside) / max(1, terms), evaluations)


def _columns(seen: Sequence[Tensor], width: int) -> list[tuple[float, ...]]:
    """Numbers of an update's parts, by what they are; read when all is done: the device would stand still for each."""
    return list(zip(*torch.stack(list(seen)).tolist(), strict=True)) if seen else [(0.0,)] * width


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
    """Loss terms of one drawn step for some of its rows: candidates, or photos with all of their candidates where they share the step.
    All indices are where the policy is: one of the CPU would be waited for."""
    size = len(rollout.photo_of) // len(condition)  # of each group; they are contiguous
    own, spread = torch.arange(size, device=rows.device), torch.arange(len(rows), device=rows.device)
    photos, members = rows // size, rows
    if step.shared:
        photos, members, spread = rows, (rows[:, None] * size + own).flatten(), spread.repeat_interleave(size)
    conditions, x = condition.select(photos), step.x[rows]
    # a rollout has one noise level a step; the deviation in `step` is on the device
    std = float(step.sampler.coefficients(step.sigma, step.sigma_next).std.to(step.std.dtype))

    def mean_of_policy() -> Tensor:
        v = backbone.velocity(x, float(step.sigma), conditions)
        return step.sampler.mean_std(x, v, step.sigma, step.sigma_next)[0]

    mean = mean_of_policy()
    evaluations = 3 * len(x) * backbone.forwards
    old = step.mean[rows]
    guard, neighbor = loss.ratio == "guard", loss.method == "neighbor"
    if neighbor:
        others, worth = step.x_next.unflatten(0, (-1, size))[photos], advantages.unflatten(0, (-1, size))[photos].to(mean)
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


# ---- DiffusionNFT

LARGEST = 5.0
"""Advantage at which a candidate is as good as can be, r = 1; DiffusionNFT's code has this bound."""
ANCHOR_DRAWS = 4
"""Noises an anchor is learned from at each noise level."""


def forward_noise(
    backbone: Backbone, sigmas: Sequence[float], count: int, groups: Sequence[int], *, seed: int, iteration: int
) -> dict[float, Float[Tensor, "groups draws tokens channels"]]:
    """What the candidates and anchors of a training step are noised with: at up to `count` levels drawn of the sampler's `sigmas` (from 1
    down to 0), of each group (by its number in the step) one noise for all its candidates, then `ANCHOR_DRAWS` for its anchor.
    """
    order = torch.randperm(len(sigmas) - 1, generator=torch.Generator().manual_seed(mix(seed, iteration)))
    chosen = sorted(order[:count].tolist())

    def drawn(group: int, level: int) -> Tensor:
        return backbone.noise(1 + ANCHOR_DRAWS, torch.Generator().manual_seed(mix(seed, iteration, group, 0, level)))

    return {sigmas[level]: torch.stack([drawn(group, level) for group in groups]) for level in chosen}


def accumulate_forward_gradients(
    backbone: Backbone,
    condition: Condition,
    rollout: Rollout,
    advantages: Float[Tensor, " members *tokens"],
    photos: Int[Tensor, " k"],
    loss: Loss,
    *,
    noise: Mapping[float, Float[Tensor, "groups draws tokens channels"]],
    anchors: Latents | None = None,
    old_policy: Callable[[], AbstractContextManager[None]] | None = None,
    micro_batch: int,
    candidates: int | None = None,
) -> UpdateFigures:
    """Add the gradients of the mean loss over the candidates of `photos` and the noise levels to the parameters.

    Advantages are one a candidate, or one a token of it; candidates whose advantages are all 0 are left out and count as loss 0. The noise
    is from `forward_noise`. Anchors are learned from as candidates with r = 1, weighed by `anchor_weight` against all candidates of their
    photo; `kl_beta` is on the squared distance between the `x0` of policy and base. `old_policy` puts the old policy in place for a while;
    without it, it is the policy as it is now. `micro_batch` and `candidates` are as in `accumulate_gradients`.
    """
    members = torch.isin(rollout.photo_of, photos).nonzero()[:, 0]
    if not len(members):  # all candidates of the update are in other processes
        return NO_FIGURES
    live = members[advantages[members].reshape(len(members), -1).abs().sum(1) > 0]
    terms = (candidates or len(members)) * max(1, len(noise))
    evaluations, seen = 0, list[Tensor]()
    place = rollout.latents.device  # has the indices, too: an index of the CPU would be waited for
    live, all_photos, of_photo, advantages = (some.to(place) for some in (live, photos, rollout.photo_of, advantages))
    for level, drawn in noise.items():
        photo_of = of_photo[live]
        standing = (advantages[live].clamp(-LARGEST, LARGEST) / LARGEST + 1) / 2
        parts = [(rollout.latents[live], drawn[photo_of, 0], photo_of, standing, 1 / terms)]
        if anchors is not None and loss.anchor_weight > 0:
            photo_of = all_photos.repeat_interleave(ANCHOR_DRAWS)
            weight = loss.anchor_weight * len(members) / (terms * len(photo_of))
            parts.append((anchors[photo_of], drawn[all_photos, 1:].flatten(0, 1), photo_of, standing.new_ones(len(photo_of)), weight))
        for x0, noises, photo_of, r, weight in parts:
            for start in range(0, len(x0), micro_batch):
                rows = slice(start, start + micro_batch)
                x, of = torch.lerp(x0[rows], noises[rows], level), condition.select(photo_of[rows])
                old = None
                if old_policy is not None:  # first: the weights that a backward needs must not move after its forward
                    with torch.no_grad(), old_policy():
                        old = backbone.velocity(x, level, of)
                term, away = _terms(backbone, of, x, x0[rows], old, level, r[rows], loss)
                (weight * (term.sum() + loss.kl_beta * away.sum())).backward()
                both = (term.detach().sum() + loss.kl_beta * away.detach().sum(), away.detach().sum())
                seen.append(weight * torch.stack(both).double())
                evaluations += (3 + (loss.kl_beta > 0) + (old is not None)) * len(term) * backbone.forwards
    total, kl = _columns(seen, 2)
    return UpdateFigures(sum(total), sum(kl), 0.0, 0.0, evaluations)


def _terms(
    backbone: Backbone,
    condition: Condition,
    x: Latents,
    x0: Latents,
    old: Latents | None,
    level: float,
    standing: Float[Tensor, " n *tokens"],
    loss: Loss,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Loss of some candidates at a noise level, and the squared distance of the policy's `x0` from the base's."""
    v = backbone.velocity(x, level, condition)
    old = v.detach() if old is None else old
    r = standing.to(x).reshape(len(x), -1)

    def error(sign: int) -> Float[Tensor, "n tokens"]:
        implicit = (1 - sign * loss.beta) * old + sign * loss.beta * v
        return (x - level * implicit - x0).square().mean(2)

    term = (r * error(1) + (1 - r) * error(-1)).mean(1)
    if loss.kl_beta == 0:
        return term, torch.zeros_like(term)
    with torch.no_grad(), base_policy(backbone):
        reference = backbone.velocity(x, level, condition)
    return term, (level * (v - reference)).square().flatten(1).mean(1)
