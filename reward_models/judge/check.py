"""The verifiable rewards as an independent check of a judge, whether or not they are part of what is maximised."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from portraitkit.stats import rank_correlation
from reward_models.combine import combine
from reward_models.photos import Photos
from reward_models.reward_set import RewardSet
from reward_models.verifiable import REWARDS

Values = Float[Tensor, " n"]


@torch.no_grad()
def verifiable_reward(
    rewards: RewardSet,
    parts: dict[str, Values],
    candidates: Float[Tensor, "n 3 h w"],
    photos: Photos,
    photo_of: Int[Tensor, " n"] | None = None,
) -> Values:
    """All five verifiable rewards at their own weights, combined as the run combines; those that `parts` has are not computed again.

    Candidates, photos and photo_of are as in `RewardSet.parts`.
    """
    missing = RewardSet({name: reward for name, reward in REWARDS.items() if name not in parts}, {}, rewards.how, rewards.batch)
    known = {name: values for name, values in parts.items() if name in REWARDS} | missing.parts(candidates, photos, photo_of)
    return combine(known, {name: REWARDS[name].weight for name in known}, rewards.how)


def judged_reward(rewards: RewardSet, parts: dict[str, Values]) -> Values:
    """The mean of the judges' values, NaN where none has one."""
    return torch.stack([parts[name] for name in rewards.group_rewards]).nanmean(0)


def agreement_in_groups(judged: Values, checked: Values, groups: Int[Tensor, " n"]) -> float:
    """Mean over the groups of the rank correlation (Spearman) between judge and check; NaN where no group has a spread in both."""
    found = torch.tensor([rank_correlation(judged[groups == group], checked[groups == group]) for group in groups.unique()])
    return float(found.nanmean())
