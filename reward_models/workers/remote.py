"""Rewards that a reward worker scores, as the run that uses them sees them: what they are called, what they need, what they counted."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from reward_models.judge.judge import Counts
from reward_models.judge.reward import NEED_ANCHORS, Form, split_argument
from reward_models.photos import Photos
from reward_models.reward_set import GroupReward, RewardFunction
from reward_models.verifiable import REWARDS
from reward_models.workers.client import RewardWorkers


@dataclass(frozen=True)
class ServedJudge:
    """A judge behind a worker.

    Attributes:
        name: that workers serve it under.
        form: see `judge_reward.FORMS`.
        workers: that are asked.
        counts: what the judge was asked for this run.
    """

    name: str
    form: Form
    workers: RewardWorkers
    counts: Counts

    @property
    def needs_anchors(self) -> bool:
        """Whether photos without a preferred retouch have no value."""
        return self.form in NEED_ANCHORS

    def of_groups(self, candidates: Float[Tensor, "n 3 h w"], photos: Photos, photo_of: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """See `reward_set.GroupReward`; one group, or candidates that are alone, at a time."""
        return self.workers.score([self.name], candidates, photos)[self.name]


def stand_in(name: str, workers: RewardWorkers) -> RewardFunction | GroupReward:
    """What stands for a served reward in a `RewardSet`: a verifiable one itself, whose error maps local credit needs; else a proxy."""
    kind, _, argument = name.partition(":")
    if kind in REWARDS:
        return REWARDS[kind]
    if kind == "judge":
        return ServedJudge(name, split_argument(argument)[1], workers, workers.counts.setdefault(name, Counts()))

    def reward(candidates: Float[Tensor, "n 3 h w"], photos: Photos) -> Float[Tensor, " n"]:
        return workers.score([name], candidates, photos)[name]

    return reward
