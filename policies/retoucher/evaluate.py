"""Evaluation by the plain, anchor-free ODE on photos the policy was not trained on, with fixed initial noise."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from policies.retoucher.micro_batch import MicroBatch
from policies.retoucher.model.backbone import Backbone, Condition, sample_ode
from policies.retoucher.photos import PhotoSource, TrainingPhotos
from policies.retoucher.processes import Processes
from portraitkit.stats import Change, mean_by, paired_change
from reward_models.learned import arcface_change, has_arcface
from reward_models.reward_set import RewardSet, verifiable_reward
from reward_models.verifiable import blemish_residual, clarity_error, identity_change, lip_change, residual_grain, texture_error, tone_error

MEASURES = {
    "identity_distance": identity_change,
    "blemish_residual": blemish_residual,
    "texture_error": texture_error,
    "clarity_error": clarity_error,
    "tone_error": tone_error,
    "lip_dE": lip_change,
    "residual_grain": residual_grain,
}
"""What is measured beside the rewards, and `arcface_distance` where its weights are. All are errors: lower is better."""


@dataclass(frozen=True)
class EvaluationSet:
    """Photos of one split, encoded once, with the initial noise that every evaluation starts from. Between evaluations, and but for those
    at work, they are in main memory: a GPU has the policy."""

    batch: TrainingPhotos
    condition: Condition
    noise: Float[Tensor, "n tokens channels"]
    device: torch.device = torch.device("cpu")  # where they are worked on

    def select(self, rows: Int[Tensor, " k"]) -> Self:
        """The photos at `rows`."""
        ids, people = ([names[row] for row in rows.tolist()] for names in (self.batch.ids, self.batch.people))
        photos = TrainingPhotos(self.batch.photos.select(rows), None, ids, people)
        return replace(self, batch=photos, condition=self.condition.select(rows), noise=self.noise[rows])


@dataclass(frozen=True)
class Evaluation:
    """Retouched photos and what was measured on each, on the CPU for reports: `reward`, every reward's part, every measure; `verifiable`,
    the verifiable rewards combined, where a judge is in use. Rows with one id are draws of one photo, which counts once."""

    pictures: Float[Tensor, "n 3 h w"]
    values: dict[str, Float[Tensor, " n"]]
    ids: list[str]
    people: list[str]

    def by_photo(self) -> dict[str, Float[Tensor, " k"]]:
        """Each value's mean over the draws of a photo, missing ones left out."""
        return {name: mean_by(value, self.ids) for name, value in self.values.items()}

    def person_of_photo(self) -> list[str]:
        """Who is in each photo of `by_photo`."""
        return list(dict(zip(self.ids, self.people, strict=True)).values())

    def means(self) -> dict[str, float]:
        """Mean over photos, missing values left out."""
        return {name: float(value.nanmean()) for name, value in self.by_photo().items()}


def evaluation_set(backbone: Backbone, source: PhotoSource, split: str, count: int, *, prompt: str, noise_seed: int) -> EvaluationSet:
    """Load and encode the first `count` photos of a split, or those there are: each photo once."""
    have = source.count(split)
    count = count if have is None else min(count, have)
    batch = replace(source.load(split, list(range(count))), anchors=None)
    noise = backbone.noise(count, torch.Generator().manual_seed(noise_seed))
    condition, device = backbone.condition(batch.photos.source, prompt), noise.device
    if device.type != "cpu":

        def waiting(part: Tensor) -> Tensor:
            return part.cpu().pin_memory()  # where they wait

        batch = replace(batch, photos=batch.photos.each(waiting))
        condition, noise = condition.each(waiting), waiting(noise)
    return EvaluationSet(batch, condition, noise, device)


def evaluate_policy(
    backbone: Backbone,
    data: EvaluationSet,
    rewards: RewardSet,
    num_steps: int,
    processes: Processes | None = None,
    *,
    pictures: bool = True,
    fitting: MicroBatch | None = None,
) -> Evaluation:
    """Retouch every photo of the set by the ODE and measure it.

    Several processes take a part of the photos each, and all have the values of all photos afterwards; the pictures only where they are
    wanted. As many photos as `fitting` says go through the networks at once, all if it is not given.
    """

    def retouched(part: EvaluationSet) -> Float[Tensor, "n 3 h w"]:
        count = len(part.noise)
        return (fitting or MicroBatch(count)).fit(count, lambda rows: sample_ode(backbone, part.condition, part.noise, num_steps, rows))

    if processes is None or processes.count == 1:
        return measure(retouched(data), data, rewards)

    def own() -> Evaluation | None:
        rows = torch.tensor(processes.share(len(data.noise)), dtype=torch.long)
        # Who evaluates a divided network must do so as often as the others: a process with a photo less takes the first one instead.
        spare = -(-len(data.noise) // processes.count) - len(rows) if fitting is not None and fitting.fixed else 0
        found = retouched(data.select(torch.cat([rows, rows.new_zeros(spare)])))[: len(rows)] if len(rows) + spare else None
        if found is None or not len(rows):
            return None
        part = data.select(rows)
        done = measure(found, part, rewards)
        return done if pictures else replace(done, pictures=done.pictures[:0])

    parts = [part for part in processes.gather(processes.together(own)) if part is not None]
    values = {name: processes.in_order([part.values[name] for part in parts]) for name in parts[0].values}
    seen = [part.pictures for part in parts]
    return Evaluation(processes.in_order(seen) if pictures else seen[0], values, data.batch.ids, data.batch.people)


@torch.no_grad()
def measure(pictures: Float[Tensor, "n 3 h w"], data: EvaluationSet, rewards: RewardSet) -> Evaluation:
    """Rewards and measures of given pictures of the set's photos."""
    measures = MEASURES | ({"arcface_distance": arcface_change} if has_arcface() else {})
    rows = [slice(start, start + rewards.batch) for start in range(0, len(pictures), rewards.batch)]
    to, scorings, measured = partial(Tensor.to, device=data.device, non_blocking=True), [], []
    for part in rows:
        there = to(pictures[part]), data.batch.photos.select(part).each(to)
        scorings.append(rewards.submit(*there))
        checked = {"verifiable": verifiable_reward(rewards, {}, *there)} if rewards.group_rewards else {}
        measured.append(checked | {name: function(*there).cpu() for name, function in measures.items()})  # a number a picture
    done = [scoring.result() for scoring in scorings]
    parts = {name: torch.cat([some[name] for some in done]) for name in done[0]}
    values = {"reward": rewards.combined(parts)} | parts | {name: torch.cat([some[name] for some in measured]) for name in measured[0]}
    return Evaluation(pictures.cpu(), values, data.batch.ids, data.batch.people)  # for the report


def compare(before: Evaluation, after: Evaluation) -> dict[str, Change]:
    """Paired change of everything that was measured: each photo counts once, intervals are over people."""
    old, new, people = before.by_photo(), after.by_photo(), before.person_of_photo()
    return {name: paired_change(old[name], new[name], people) for name in old}
