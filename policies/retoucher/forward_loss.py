"""DiffusionNFT (arXiv 2509.16117): what a group's rewards teach, learned on the forward process instead of on the sampler's steps.

A candidate `x0`, sampled by any solver, is noised again, `x_t = (1 - t) x0 + t e`. The policy's velocity `v` and that of the old policy,
which drew the candidates, make an implicit positive and an implicit negative policy,

    v+ = (1 - beta) v_old + beta v,    v- = (1 + beta) v_old - beta v,

and with `r` in [0, 1], the candidate's standing in its group, the loss is `r |x0+ - x0|^2 + (1 - r) |x0- - x0|^2`, `x0+ = x_t - t v+`.
No likelihood, no noise in the pictures, and no trajectory is kept.

The old policy is a moving average of the policy (`--old-policy-decay`); without one it is the policy as an update begins, which drew the
candidates where a step has one update. The candidates of a group are noised alike: what they have in common then falls out of the gradient,
wholly at t = 1. The code of the paper divides each term by its own mean absolute error, which would bring that back; ours does not.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from policies.retoucher.model.backbone import Backbone, Condition, Latents
from policies.retoucher.rollout import Rollout, mix
from policies.retoucher.update import NO_FIGURES, Loss, UpdateFigures, base_policy

LARGEST = 5.0
"""Advantage at which a candidate is as good as can be, r = 1; DiffusionNFT's code has this bound."""
ANCHOR_DRAWS = 4
"""Noises an anchor is learned from at each noise level."""


def forward_noise(
    backbone: Backbone, sigmas: Sequence[float], count: int, groups: Sequence[int], *, seed: int, iteration: int
) -> dict[float, Float[Tensor, "groups draws tokens channels"]]:
    """What the candidates and anchors of a training step are noised with.

    Args:
        backbone: the policy.
        sigmas: noise levels of the sampler's steps, from 1 down; 0 at the end.
        count: how many of them are drawn, all if there are fewer.
        groups: numbers of the groups in the step; each has noise from generators of its own.
        seed: of the run.
        iteration: training step.

    Returns:
        By noise level: of each group one noise for all its candidates, then `ANCHOR_DRAWS` for its anchor.
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

    Args:
        backbone: the policy, which drew the candidates.
        condition: of all photos.
        rollout: whose final latents are learned from.
        advantages: one a candidate, or one a token of it; candidates whose advantages are all 0 are left out and count as loss 0.
        photos: whose candidates are learned from.
        loss: its `beta`, `kl_beta` (on the squared distance between the `x0` of policy and base) and `anchor_weight`.
        noise: from `forward_noise`, one row a photo.
        anchors: of all photos, learned from as candidates with r = 1; weighed by `anchor_weight` against all candidates of the photo.
        old_policy: puts the old policy in place for a while; None where it is the policy as it is now.
        micro_batch: candidates that go forward and backward at once.
        candidates: those of the whole update, of which other processes have some; gradients and figures of all processes then add up.
    """
    members = torch.isin(rollout.photo_of, photos).nonzero()[:, 0]
    if not len(members):  # all candidates of the update are in other processes
        return NO_FIGURES
    live = members[advantages[members].reshape(len(members), -1).abs().sum(1) > 0]
    terms = (candidates or len(members)) * max(1, len(noise))
    total = kl = 0.0
    evaluations = 0
    for level, drawn in noise.items():
        photo_of = rollout.photo_of[live]
        standing = (advantages[live].clamp(-LARGEST, LARGEST) / LARGEST + 1) / 2
        parts = [(rollout.latents[live], drawn[photo_of, 0], photo_of, standing, 1 / terms)]
        if anchors is not None and loss.anchor_weight > 0:
            photo_of = photos.repeat_interleave(ANCHOR_DRAWS)
            weight = loss.anchor_weight * len(members) / (terms * len(photo_of))
            parts.append((anchors[photo_of], drawn[photos, 1:].flatten(0, 1), photo_of, standing.new_ones(len(photo_of)), weight))
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
                total += weight * float(term.detach().sum() + loss.kl_beta * away.detach().sum())
                kl += weight * float(away.detach().sum())
                evaluations += (3 + (loss.kl_beta > 0) + (old is not None)) * len(term) * backbone.forwards
    return UpdateFigures(total, kl, 0.0, 0.0, evaluations)


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
