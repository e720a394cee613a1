"""What one optimised group costs a policy: the two methods that are compared, and one group of them with the trainer's own parts."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from policies.retoucher.config import RetoucherConfig
from policies.retoucher.model.backbone import Condition, Latents
from policies.retoucher.rollout import Rollout, noise_of_groups, roll_out
from policies.retoucher.trainer import Trainer
from policies.retoucher.update import accumulate_gradients

ALL_STEPS, DPG = "Flow-GRPO, all steps", "DPG, K 3, shared"
ARMS = {
    ALL_STEPS: {"dpg": False, "window": "all", "shared_noise": False},
    DPG: {"dpg": True, "window": "segments", "shared_noise": True},
}


@dataclass(frozen=True)
class Cost:
    """What one optimised group costs; evaluations are those of one picture by the transformer, a backward counts as two."""

    rolled: float
    """Evaluations of the rollout."""
    updated: float
    """Evaluations of the update."""
    policy_seconds: float
    """Of rollout and update."""
    total_seconds: float
    """With what stands between them: decoding and rewards."""

    @property
    def evaluations(self) -> float:
        """All of them."""
        return self.rolled + self.updated


@dataclass(frozen=True)
class Group:
    """The photo whose candidates are compared.

    Attributes:
        condition: of this one photo.
        anchors: its anchor's latents.
        advantages: judges a rollout's candidates.
    """

    condition: Condition
    anchors: Latents
    advantages: Callable[[Rollout], Float[Tensor, " members"]]


def optimise_group(trainer: Trainer, config: RetoucherConfig, group: Group, number: int) -> Cost:
    """Roll out, judge and update one group.

    Args:
        trainer: of the policy.
        config: its configuration, or the same with another method's settings.
        group: the photo.
        number: the drawn steps and the noise follow from it.
    """
    start = clock(config.device)
    scheduler = config.scheduler(trainer.sigmas, number)
    drawn = {"group_size": config.group_size, "shared_noise": config.shared_noise, "seed": number, "iteration": 0}
    noise = noise_of_groups(trainer.backbone, scheduler.drawn_steps, [0], **drawn)
    anchors = group.anchors if config.dpg else None
    rollout = roll_out(trainer.backbone, group.condition, anchors, scheduler, noise, batch=config.micro_batch)
    rolled = clock(config.device)
    advantages = group.advantages(rollout)
    judged = clock(config.device)
    trainer.optimizer.zero_grad(set_to_none=True)
    unit = (trainer.backbone, group.condition, rollout, advantages, torch.arange(1), config.objective)
    figures = accumulate_gradients(*unit, micro_batch=config.micro_batch)
    trainer.optimizer.step()
    done = clock(config.device)
    return Cost(rollout.evaluations, figures.evaluations, rolled - start + done - judged, done - start)


def clock(device: str) -> float:
    """Seconds, read when the device has done all that it was asked to do."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
