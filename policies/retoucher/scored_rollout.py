"""A rollout with its rewards: reward workers score the first groups while the next ones are rolled out."""

import time
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from policies.retoucher.config import RetoucherConfig
from policies.retoucher.micro_batch import Room
from policies.retoucher.model.backbone import Backbone, Condition, Latents
from policies.retoucher.rollout import Noise, Rollout, StepPlan, join, roll_out_photos
from portraitkit.processor import bf16_autocast
from reward_models.photos import Photos
from reward_models.reward_set import RewardSet


@dataclass(frozen=True)
class ScoredRollout:
    """Candidates of a step and what they earned.

    Attributes:
        rollout: of all photos.
        candidates: RGB, [0, 1], one a member of the rollout.
        parts: every reward of every candidate.
        waited: seconds between the last candidate and the last reward.
    """

    rollout: Rollout
    candidates: Float[Tensor, "members 3 h w"]
    parts: dict[str, Float[Tensor, " members"]]
    waited: float


def roll_out_and_score(
    backbone: Backbone,
    condition: Condition,
    anchors: Latents | None,
    plan: StepPlan,
    photos: Photos,
    rewards: RewardSet,
    config: RetoucherConfig,
    noise: Noise,
    room: Room | None = None,
) -> ScoredRollout:
    """Roll out one photo after the other, or as many together as fit a micro-batch, and begin to score each as soon as it is there.

    Which photos go together follows from the configuration, never from where rewards are scored; the noise is drawn before. So the
    step is the same, bit by bit, with workers and without. Advantages need every reward of a group, and `--global-std` those of the
    step, and the next rollout needs the updated policy: rewards overlap with rollouts within a step, never across an update.

    Args:
        backbone: the policy.
        condition: the encoded photos.
        anchors: encoded anchors of the photos; None without guidance.
        plan: the steps.
        photos: one a row of `condition`.
        rewards: that score.
        config: the run.
        noise: of all photos.
        room: for candidates that go through the networks at once; a micro-batch if not given.

    Raises:
        WorkersLost: rewards that workers score never came.
        OutOfMemory: there is no room for one candidate.
    """
    total, room = len(condition), room or Room(config.micro_batch)
    rollouts, pictures, scorings = [], [], []
    for rows in torch.arange(total).split(max(1, config.micro_batch // config.group_size)):
        given = (backbone, condition, anchors, plan, noise, rows)
        members = len(rows) * noise.group_size
        rollout = room.fit(members, lambda batch, given=given: roll_out_photos(*given, batch=batch, bf16=config.bf16_rollouts))
        candidates = room.fit(members, lambda batch, rollout=rollout: _decoded(backbone, condition, rollout, batch, config.bf16_rollouts))
        scorings.append(rewards.submit(candidates, photos, rollout.photo_of))
        rollouts.append(rollout)
        pictures.append(candidates)
    rolled = time.monotonic()
    done = [scoring.result() for scoring in scorings]
    parts = {name: torch.cat([part[name] for part in done]) for name in done[0]}
    return ScoredRollout(join(rollouts), torch.cat(pictures), parts, time.monotonic() - rolled)


@torch.no_grad()
def _decoded(backbone: Backbone, condition: Condition, rollout: Rollout, batch: int, bf16: bool) -> Float[Tensor, "members 3 h w"]:
    parts = zip(rollout.latents.split(batch), rollout.photo_of.split(batch), strict=True)
    with bf16_autocast(bf16):
        return torch.cat([backbone.decode(latents, condition.select(photo_of)) for latents, photo_of in parts])
