"""The shared mathematics of group-relative policy optimisation (GRPO, arXiv 2402.03300), as pure tensor functions.

Log-probabilities are means over a sample's dimensions, as in Flow-GRPO (arXiv 2505.05470): clip ranges of 1e-4 to 1e-5 follow from that.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Advantages(NamedTuple):
    """Advantages and what was left out of them."""

    values: Float[Tensor, " n"]  # Zero-mean in every group; 0 for unscorable samples and in groups without spread
    zero_groups: int  # Groups in which every scorable sample has the same reward, or fewer than two are scorable
    unscorable: int  # Samples whose reward is not finite


def _by_group(values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centred values (0 where not finite), standard deviation (ddof 1) and spread of each one's group, and the finite mask."""
    finite = values.isfinite()
    kinds, index = torch.unique(groups, return_inverse=True)
    known = torch.where(finite, values, 0.0).double()

    def total(x: Tensor) -> Tensor:
        return torch.zeros(len(kinds), dtype=torch.float64, device=x.device).index_add_(0, index, x)

    count = total(finite.double())
    mean = total(known) / count
    extreme = torch.zeros(len(kinds), dtype=torch.float64, device=values.device)
    high = extreme.scatter_reduce(0, index, torch.where(finite, known, -torch.inf), "amax", include_self=False)
    low = extreme.scatter_reduce(0, index, torch.where(finite, known, torch.inf), "amin", include_self=False)
    spread = (high - low).clamp_min(0)
    centred = torch.where(finite & (spread[index] > 0), known - mean[index], 0.0)
    std = (total(centred.square()) / (count - 1).clamp_min(1)).sqrt()
    return centred, std[index], spread, finite


def group_advantages(
    rewards: Float[Tensor, " n"], groups: Int[Tensor, " n"], *, eps: float = 1e-4, clip: float = 5.0, global_std: bool = False
) -> Advantages:
    """Rewards compared inside their group: `(r - mean) / (std + eps)`, clipped to [-clip, clip]. Equal numbers make a group, in any order.

    Rewards that are not finite are unscorable: out of the statistics, advantage 0. `global_std` divides by the standard deviation (ddof 0)
    of all rewards as they are, as Flow-GRPO's code does, instead of the group's (ddof 1, as torch has it). TRL's `scale_rewards="batch"`
    takes ddof 1 there.
    """
    centred, std, spread, finite = _by_group(rewards, groups)
    if global_std and bool(finite.any()):
        std = rewards[finite].double().std(correction=0)
    _, index = torch.unique(groups, return_inverse=True)
    alike = spread[index] == 0
    values = torch.where(alike | ~finite, 0.0, centred / (std + eps)).clamp(-clip, clip)
    return Advantages(values.to(rewards.dtype), int((spread == 0).sum()), int((~finite).sum()))


def normalise_then_sum(
    parts: dict[str, Float[Tensor, " n"]], groups: Int[Tensor, " n"], weights: dict[str, float], *, eps: float = 1e-4
) -> Float[Tensor, " n"]:
    """Each reward standardised in its group (ddof 1), then the weighted sum: zero-mean in every group.

    A part that is not finite for a sample adds nothing to it; a sample without any finite part is NaN.
    """
    total, any_finite = None, None
    for name, values in parts.items():
        centred, std, _, finite = _by_group(values, groups)
        scaled = weights[name] * torch.where(finite, centred / (std + eps), 0.0)
        total = scaled if total is None else total + scaled
        any_finite = finite if any_finite is None else any_finite | finite
    if total is None or any_finite is None:
        raise ValueError("parts is empty: at least one reward is needed")
    return torch.where(any_finite, total, torch.nan).to(next(iter(parts.values())).dtype)


def per_reward_advantages(
    parts: dict[str, Float[Tensor, " n"]],
    groups: Int[Tensor, " n"],
    weights: dict[str, float],
    scale: Literal["mixgrpo", "gdpo"],
    *,
    clip: float = 5.0,
) -> Advantages:
    """Advantages of several rewards that are standardised each on its own before they are summed, see `normalise_then_sum`; clipped.

    The sum is not standardised in the group again: rewards that cancel out would be blown up to unit spread. `mixgrpo` takes the sum as it
    is (arXiv 2507.21802 and its code, whose eps is 1e-8); `gdpo` divides by its standard deviation (ddof 1) over the batch + 1e-4 (arXiv
    2601.05242; TRL's `normalize_then_sum`, which adds 1e-4 in the groups, too).
    """
    total = normalise_then_sum(parts, groups, weights, eps=1e-8 if scale == "mixgrpo" else 1e-4)
    _, _, spread, finite = _by_group(total, groups)
    if scale == "gdpo" and int(finite.sum()) > 1:
        total = total / (total[finite].std() + 1e-4)
    values = torch.where(finite, total, 0.0).clamp(-clip, clip)
    return Advantages(values, int((spread == 0).sum()), int((~finite).sum()))


def local_advantages(
    credit: Float[Tensor, "n cells"], rewards: Float[Tensor, " n"], groups: Int[Tensor, " n"], *, eps: float = 1e-4, clip: float = 5.0
) -> Float[Tensor, "n cells"]:
    """What each cell of a sample added to its reward, compared inside the group: `(c - mean) / (std of the rewards + eps)`, clipped.

    `credit` is the part of the reward that each cell answers for, in the reward's unit; a cell that answers for all of it gets what
    `group_advantages` gives the sample. Samples whose reward is not finite, and groups without spread, get 0.
    """
    _, std, spread, finite = _by_group(rewards, groups)
    _, index = torch.unique(groups, return_inverse=True)
    known = torch.where(finite[:, None], credit, torch.nan)
    centred = torch.stack([_by_group(cell, groups)[0] for cell in known.T], 1)
    live = finite & (spread[index] > 0)
    return torch.where(live[:, None], centred / (std + eps)[:, None], 0.0).clamp(-clip, clip).to(credit.dtype)


def clipped_surrogate(
    log_ratio: Float[Tensor, " n *cells"], advantages: Float[Tensor, " n *cells"], clip_range: float
) -> Float[Tensor, " n *cells"]:
    """PPO's loss (arXiv 1707.06347): `max(-A r, -A clip(r, 1 - e, 1 + e))` with `r = exp(log_ratio)`, one a sample or cell."""
    ratio = log_ratio.exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + clip_range))


def divergence_surrogate(
    log_ratio: Float[Tensor, " n *cells"], advantages: Float[Tensor, " n *cells"], divergence: Float[Tensor, " n *cells"], threshold: float
) -> tuple[Float[Tensor, " n *cells"], Bool[Tensor, " n *cells"]]:
    """Flow-DPPO's loss (arXiv 2606.11025): `-A r` with `r = exp(log_ratio)`, and 0 where the policy is too far from the old one and the
    update would take it farther; and which entries are so blocked.

    `divergence` is `gaussian_kl` of the step from the old policy's, closed and without the noise that a sample's own ratio has; above
    `threshold` an update may not go on away from the old policy, where `A > 0, r > 1` or `A < 0, r < 1`.
    """
    blocked = (divergence > threshold) & (advantages * log_ratio > 0)
    return torch.where(blocked, 0.0, -advantages * log_ratio.exp()), blocked


def neighbor_log_ratio(
    new: Float[Tensor, " n *dims"], old: Float[Tensor, " n *dims"], candidates: Float[Tensor, " n members *dims"], keep: int = 1
) -> Float[Tensor, " n members *kept"]:
    """Neighbor GRPO's log-ratios (arXiv 2511.16955): those of `softmax(-|c - x|^2)` over a group's candidates c, around an anchor x.

    At the old policy the gradient of `sum(A r)` by x is `2 sum(A c)` where the advantages add up to 0: towards the better candidates.

    Args:
        new: where the policy takes each anchor; gradients flow.
        old: where the old policy took it.
        candidates: where it took those of the anchor's group, the anchor among them.
        keep: dimensions kept, that of the anchors counted; squared distances are means over the others, the paper's sums over all (I).
    """

    def log_policy(x: Tensor) -> Tensor:
        return (-(candidates - x[:, None]).square().flatten(keep + 1).mean(-1)).log_softmax(1)

    return log_policy(new) - log_policy(old)


def quasi_norm_weights(advantages: Float[Tensor, " n"], groups: Int[Tensor, " n"], p: float) -> Float[Tensor, " n"]:
    """What Neighbor GRPO multiplies a group's advantages by, `1 / (sum |A|^p)^(1/p)`, p in (0, 2]: with p below 2 flat groups count for
    less. Where all advantages of a group are 0, so are its weights."""
    _, index = torch.unique(groups, return_inverse=True)
    norm = torch.zeros_like(advantages).index_add(0, index, advantages.abs() ** p) ** (1 / p)
    return torch.where(norm > 0, 1 / norm, 0.0)[index]


def gaussian_kl(
    mean: Float[Tensor, " n *dims"], mean_reference: Float[Tensor, " n *dims"], std: float | Float[Tensor, "..."], keep: int = 1
) -> Float[Tensor, " n *kept"]:
    """KL of two Gaussian steps with equal standard deviation, averaged over dimensions: `mean((m - m_ref)^2) / (2 std^2)`.

    `std` is that of the step, D included: Flow-GRPO's code leaves D out (its issue 78); this is the true KL. `keep` dimensions are kept.
    """
    gap = (mean - mean_reference) / std
    return gap.square().flatten(keep).mean(-1) / 2


def guard_log_ratio(
    log_ratio: Float[Tensor, " n"], mean_old: Float[Tensor, " n *dims"], mean_new: Float[Tensor, " n *dims"], std: float
) -> Float[Tensor, " n"]:
    """GRPO-Guard's standardised log-ratio (arXiv 2510.22319): `(log r + mean(dmu^2) / (2 std^2)) std`.

    `log_ratio` is the Gaussian one, for `cps`, too: `Sampler.log_ratio(..., gaussian=True)`. The added term cancels its negative mean, the
    factor its dependence on the noise level of the step.
    """
    return (log_ratio + gaussian_kl(mean_new, mean_old, std)) * std
