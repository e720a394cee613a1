"""The groups of a training step that one process takes: rolled out and scored here, and what the other processes are told of them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from policies.retoucher.config import RetoucherConfig
from policies.retoucher.micro_batch import Room
from policies.retoucher.model.backbone import Backbone, Condition, Latents
from policies.retoucher.processes import Processes
from policies.retoucher.rollout import Rollout, StepPlan, noise_of_groups
from policies.retoucher.scored_rollout import roll_out_and_score
from policies.retoucher.training_photos import PhotoSource, TrainingPhotos
from reward_models.judge.reward import CountedJudge
from reward_models.photos import Photos
from reward_models.reward_set import RewardSet, verifiable_reward


@dataclass(frozen=True)
class OwnGroups:
    """What stays in the process. In condition and rollout, groups are counted from 0; group i is the step's group `groups[i]`.

    Attributes:
        groups: numbers of the groups in the step, ascending.
        condition: of their photos, one row a group.
        rollout: of all their candidates.
        candidates: RGB, [0, 1], one a member of the rollout.
        photos: one a group.
    """

    groups: list[int]
    condition: Condition
    rollout: Rollout
    candidates: Float[Tensor, "members 3 h w"]
    photos: Photos


@dataclass(frozen=True)
class Told:
    """What every process knows of the groups of one, or of all of them.

    Attributes:
        parts: every reward of every candidate; empty where there is no group.
        ids: of the photos.
        evaluations: network evaluations spent on the rollouts.
        waited: seconds between the last candidate and the last reward.
        judged: what judges were asked, by the names of `Counts`.
        checked: all verifiable rewards combined, one a candidate; None without a judge.
    """

    parts: dict[str, Float[Tensor, " members"]]
    ids: list[str]
    evaluations: int
    waited: float
    judged: dict[str, int]
    checked: Float[Tensor, " members"] | None


NOTHING = Told({}, [], 0, 0.0, {}, None)


def judges_of(rewards: RewardSet) -> list[CountedJudge]:
    """The judges among the rewards."""
    return [function for function in rewards.functions.values() if isinstance(function, CountedJudge)]


def roll_out_own(
    backbone: Backbone,
    source: PhotoSource,
    rewards: RewardSet,
    plan: StepPlan,
    config: RetoucherConfig,
    step: int,
    groups: list[int],
    room: Room | None = None,
) -> tuple[OwnGroups, Told]:
    """Roll out and score some groups of a training step.

    Args:
        backbone: the policy.
        source: of the photos.
        rewards: that score.
        plan: the steps.
        config: the run.
        step: training step.
        groups: numbers of the groups in the step, at least one.
        room: for candidates that go through the networks at once; a micro-batch if not given.

    Raises:
        UserError: a photo cannot be used, reward workers are lost, or there is no room for one candidate.
    """
    start = step * config.photos_per_step
    batch = source.load("train", [start + group for group in groups])
    condition = backbone.condition(batch.photos.source, config.prompt)
    anchors = None
    if config.dpg and config.anchor != "none" and batch.anchors is not None:
        wrong = config.anchor == "wrong"
        anchors = _anchors_of_others(backbone, source, config, start, groups, batch) if wrong else backbone.encode(batch.anchors)
    judges = judges_of(rewards)
    before = [judge.counts.copy() for judge in judges]
    drawn = {"group_size": config.group_size, "shared_noise": config.shared_noise, "seed": config.seed, "iteration": step}
    noise = noise_of_groups(backbone, plan, groups, **drawn)
    scored = roll_out_and_score(backbone, condition, anchors, plan, batch.photos, rewards, config, noise, room)
    new = [judge.counts.since(count) for judge, count in zip(judges, before, strict=True)]
    told = Told(
        {name: values.cpu() for name, values in scored.parts.items()},
        batch.ids,
        scored.rollout.evaluations,
        scored.waited,
        {name: sum(count[name] for count in new) for name in new[0]} if new else {},
        verifiable_reward(rewards, scored.parts, scored.candidates, batch.photos, scored.rollout.photo_of).cpu() if new else None,
    )
    return OwnGroups(groups, condition, scored.rollout, scored.candidates, batch.photos), told


def all_told(processes: Processes, own: Told, group_size: int) -> Told:
    """What all processes were told, in the order of the groups."""
    if processes.count == 1:
        return own
    told = [some for some in processes.gather(own) if some.ids]
    names = [torch.arange(len(some.ids)) for some in told]
    numbers = processes.in_order([torch.stack([torch.full_like(rows, place), rows], 1) for place, rows in enumerate(names)])
    return Told(
        {name: processes.in_order([some.parts[name] for some in told], group_size) for name in told[0].parts},
        [told[place].ids[row] for place, row in numbers.tolist()],
        sum(some.evaluations for some in told),
        max(some.waited for some in told),
        {name: sum(some.judged[name] for some in told) for name in told[0].judged},
        None if told[0].checked is None else processes.in_order([_values(some.checked) for some in told], group_size),
    )


def _anchors_of_others(
    backbone: Backbone, source: PhotoSource, config: RetoucherConfig, start: int, groups: list[int], batch: TrainingPhotos
) -> Latents | None:
    """The anchor of the photo before in the step, for each group; that of the last one for the first."""
    others = [(group - 1) % config.photos_per_step for group in groups]
    missing = [other for other in others if other not in groups]
    anchors = {group: batch.anchors[row] for row, group in enumerate(groups)} if batch.anchors is not None else {}
    if missing:
        more = source.load("train", [start + other for other in missing]).anchors
        anchors |= dict(zip(missing, more, strict=True)) if more is not None else {}
    return backbone.encode(torch.stack([anchors[other] for other in others]))


def _values(values: Tensor | None) -> Tensor:
    assert values is not None
    return values
