"""Rollouts: a group of candidates for each photo, stochastic only at the drawn steps, everything before them shared by the group.

With one initial noise per group the ODE steps before the first drawn step are the same for all its members, and so is the
velocity at that step: they are computed once a group. That is exact, and the update does the same for that step's gradient.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpg.sampler import TakenStep
from dpg.scheduler import DPGScheduler
from policies.retoucher.model.backbone import Backbone, Condition, Latents
from portraitkit.processor import bf16_autocast


@dataclass(frozen=True)
class Rollout:
    """Candidates of a batch of photos: member m belongs to photo `photo_of[m]`; groups are contiguous."""

    latents: Latents  # final latents, one row a candidate
    photo_of: Int[Tensor, " members"]  # index of each candidate's photo; on the CPU, as all indices are
    steps: list[TakenStep]  # the drawn steps as taken
    evaluations: int  # network evaluations spent (rows through the transformer)


@dataclass(frozen=True)
class Noise:
    """All noise of a rollout, drawn before its first step: how the rollout is cut into parts does not change it."""

    start: Latents  # initial latents, one row a photo if a group shares them, else one a candidate
    steps: Mapping[int, Float[Tensor, "members tokens channels"]]  # noise of every candidate at each drawn step, by the step's index
    group_size: int  # candidates a photo


def noise_of_groups(
    backbone: Backbone,
    drawn: Sequence[int],
    groups: Sequence[int],
    *,
    group_size: int,
    shared_noise: bool,
    seed: int,
    iteration: int,
    perturbation: float = 0.0,
) -> Noise:
    """The noise of some groups of a training step, each candidate's from its own generator, at the start and at the `drawn` steps.

    Its seed is made of the run's seed, the step, the group's number in the step and the candidate's in the group: a group has the same
    noise whichever process rolls it out, on whatever device, and whatever other groups that one has; no two candidates share any. With
    `shared_noise` a group has one initial noise e, and with a perturbation p above 0 each candidate starts at `sqrt(1 - p^2) e + p e_i`.
    """
    starts: list[Tensor] = []
    steps: dict[int, list[Tensor]] = {index: [] for index in drawn}
    for group in groups:
        first, *each = (torch.Generator().manual_seed(mix(seed, iteration, group, place)) for place in range(group_size + 1))
        common = backbone.noise(1, first) if shared_noise else None
        if common is None:
            starts += [backbone.noise(1, own) for own in each]
        elif perturbation == 0:
            starts.append(common)
        else:
            starts += [(1 - perturbation**2) ** 0.5 * common + perturbation * backbone.noise(1, own) for own in each]
        for index in drawn:
            steps[index] += [torch.randn(1, *starts[0].shape[1:], generator=own) for own in each]
    start = torch.cat(starts)
    return Noise(start, {index: torch.cat(rows).to(start) for index, rows in steps.items()}, group_size)


@torch.no_grad()
def roll_out(
    backbone: Backbone,
    condition: Condition,
    anchors: Latents | None,
    scheduler: DPGScheduler,
    noise: Noise,
    photos: Int[Tensor, " k"] | None = None,
    *,
    batch: int,
    bf16: bool = False,
) -> Rollout:
    """Draw the candidates of the photos, or of some consecutive ones (`photos`), `batch` of them evaluated at once.

    Condition, anchors (None without guidance) and noise are of all photos. The scheduler is on the timesteps of the rollout, with its
    stochastic steps drawn, and takes every step. With `bf16`, the ODE steps that a candidate takes on its own are evaluated in bfloat16: no
    ratio ever sees them. What is returned is the part of the whole rollout, whose `photo_of` counts all photos; `join` puts parts together.
    """
    photos = torch.arange(len(condition)) if photos is None else photos
    group_size, drawn = noise.group_size, scheduler.drawn_steps
    photo_of = photos.repeat_interleave(group_size)
    members = slice(int(photos[0]) * group_size, (int(photos[-1]) + 1) * group_size)
    shared = len(noise.start) == len(condition)
    place = noise.start.device  # has the indices, too: each step would wait for one of the CPU
    row_of, at = torch.arange(len(photos), device=place).repeat_interleave(group_size), photo_of.to(place)
    rows = photos.to(place) if shared else at
    x = noise.start[rows] if shared else noise.start[members]
    anchor = None if anchors is None else anchors[at]
    scheduler.restart(anchor=anchor, noise={index: z[members] for index, z in noise.steps.items()})
    evaluations = 0
    for index, timestep in enumerate(scheduler.timesteps):
        with bf16_autocast(bf16 and index not in drawn and len(x) == len(photo_of)):
            v = evaluate(backbone, x, scheduler.sigmas[index].item(), condition, rows, batch)
        evaluations += len(x) * backbone.forwards
        if index in drawn and len(x) < len(photo_of):  # from here on the members of a group differ
            x, v, rows = x[row_of], v[row_of], at
        x = scheduler.step(v, timestep, x, return_dict=False)[0]
    if len(x) < len(photo_of):
        x = x[row_of]
    one_each = torch.arange(0, len(photo_of), group_size, device=place)
    steps = [step.share(one_each) if shared and step.index == drawn[0] else step for step in scheduler.trajectory]
    return Rollout(x, photo_of, steps, evaluations)


def join(parts: Sequence[Rollout]) -> Rollout:
    """One rollout out of those of consecutive photos."""
    if len(parts) == 1:
        return parts[0]
    names = ("x", "x_next", "noise", "mean", "std", "log_prob")
    steps = [
        replace(taken[0], **{name: torch.cat([getattr(step, name) for step in taken]) for name in names})
        for taken in zip(*(part.steps for part in parts), strict=True)
    ]
    latents, photo_of = (torch.cat([getattr(part, name) for part in parts]) for name in ("latents", "photo_of"))
    return Rollout(latents, photo_of, steps, sum(part.evaluations for part in parts))


def evaluate(
    backbone: Backbone, x: Latents, sigma: float, condition: Condition, rows: Int[Tensor, " n"], batch: int
) -> Float[Tensor, "n tokens channels"]:
    """Velocities of many rows, `batch` at a time; row i is conditioned on photo `rows[i]`."""
    parts = [
        backbone.velocity(x_part, sigma, condition.select(row_part))
        for x_part, row_part in zip(x.split(batch), rows.split(batch), strict=True)
    ]
    return torch.cat(parts)


def mix(*numbers: int) -> int:
    """One seed out of several numbers, well spread (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
