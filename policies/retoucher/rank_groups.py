"""The groups of a training step that one rank takes: rolled out, scored, and what the other ranks learn of them.

Reward workers score the first groups while the next ones are rolled out.
"""

import hashlib
import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from dpg.scheduler import DPGScheduler
from policies.retoucher.config import RetoucherConfig
from policies.retoucher.micro_batch import MicroBatch
from policies.retoucher.model.backbone import Backbone, Condition, Latents, sample_ode
from policies.retoucher.photos import PhotoSource, TrainingPhotos
from policies.retoucher.processes import Processes
from policies.retoucher.rollout import Rollout, join, mix, noise_of_groups, roll_out
from portraitkit.files.jsonl import append_line
from portraitkit.pictures.images import read_image, write_image
from portraitkit.processor import bf16_autocast
from portraitkit.stats import group_rank, ranks_in_groups
from preference_data.schema import DIMENSIONS
from reward_models.photos import Photos
from reward_models.reward import GroupReward
from reward_models.reward_set import RewardSet, judged_dimensions, judged_reward, verifiable_dimensions, verifiable_reward

RANKED_GROUPS = 8
"""First groups of a run in which a judge is compared with what is verifiable, dimension by dimension: it is asked once more about them."""


@dataclass(frozen=True)
class BestOfN:
    """Photos of which training's anchors are the policy's own: of several rollouts of a photo the best by the rewards.

    Rollouts are plain ODEs from initial noises of their own. An anchor is made when its photo is first needed in a period of
    `best_of_steps`, by the policy as it is then, and lies in the folder: a resumed run finds it, or makes the same again. `anchors.jsonl`
    there says what each is worth beside the untouched photo.
    """

    source: PhotoSource
    backbone: Backbone
    rewards: RewardSet
    folder: Path
    config: RetoucherConfig
    say: Callable[[str], None]  # where an anchor that is worth less than its untouched photo is named

    @property
    def people(self) -> dict[str, int]:
        return self.source.people

    def count(self, split: str) -> int | None:
        return self.source.count(split)

    def load(self, split: str, indices: list[int]) -> TrainingPhotos:
        batch = self.source.load(split, indices)
        if split != "train":
            return batch
        anchors, evaluations = [], 0
        for row, index in enumerate(indices):
            step = index // self.config.photos_per_step
            period, photo_id = step // self.config.best_of_steps, batch.ids[row]
            path = self.folder / f"{period:04d}-{hashlib.sha256(photo_id.encode()).hexdigest()[:12]}.png"
            if not path.is_file():
                seed = mix(self.config.seed, period, zlib.crc32(photo_id.encode()))
                self._make(path, batch.photos.select(slice(row, row + 1)), photo_id, step, torch.Generator().manual_seed(seed))
                evaluations += self.config.best_of * self.config.num_steps * self.backbone.forwards
            anchors.append(read_image(path).pixels)
        return replace(batch, anchors=torch.stack(anchors).to(batch.photos.source), evaluations=evaluations)

    def _make(self, path: Path, photo: Photos, photo_id: str, step: int, generator: torch.Generator) -> None:
        count = self.config.best_of
        photo_of = torch.zeros(count, dtype=torch.long)
        condition = self.backbone.condition(photo.source, self.config.prompt).select(photo_of)
        noise, fitting = self.backbone.noise(count, generator), MicroBatch(self.config.micro_batch, "making anchors", say=self.say)
        pictures = fitting.fit(count, lambda rows: sample_ode(self.backbone, condition, noise, self.config.num_steps, rows))
        values = self.rewards.combined(self.rewards.parts(pictures, photo, photo_of)).nan_to_num(-torch.inf)
        reward, untouched = float(values.max()), float(self.rewards.combined(self.rewards.parts(photo.source, photo)))
        self.folder.mkdir(parents=True, exist_ok=True)
        write_image(path, pictures[int(values.argmax())])
        worth = {key: value if math.isfinite(value) else None for key, value in (("reward", reward), ("untouched", untouched))}
        append_line(self.folder / "anchors.jsonl", {"photo": photo_id, "step": step, "file": path.name, **worth})
        if not reward >= untouched:
            self.say(f"step {step}: {photo_id}: the best of {count} retouches is worth {reward:.3f}, the untouched photo {untouched:.3f}")


@dataclass(frozen=True)
class RankGroups:
    """The groups of a rank. In condition and rollout, groups are counted from 0; group i is the step's group `groups[i]`."""

    groups: list[int]  # numbers of the groups in the step, ascending
    condition: Condition  # of their photos, one row a group
    rollout: Rollout  # of all their candidates
    candidates: Float[Tensor, "members 3 h w"]  # RGB, [0, 1], one a member of the rollout
    photos: Photos  # one a group
    anchors: Latents | None  # theirs, encoded; None where nothing needs them


@dataclass(frozen=True)
class GroupScores:
    """What every rank learns of the groups of one rank, or of all of them."""

    parts: dict[str, Float[Tensor, " members"]]  # every reward of every candidate; empty where there is no group
    ids: list[str]  # of the photos
    evaluations: int  # network evaluations spent on the rollouts
    waited: float  # seconds between the last candidate and the last reward
    judged: dict[str, int]  # what judges were asked, by the names of `Counts`
    checked: Float[Tensor, " members"] | None  # all verifiable rewards combined, one a candidate; None without a judge
    # in the first groups of a run with a judge here: "judged/DIMENSION", its expected score, and "checked/DIMENSION", what is verifiable
    dimensions: dict[str, Float[Tensor, " members"]] = field(default_factory=dict)
    diversity: float = 0.0  # of each group, see `diversity_of`, summed over the groups


NO_SCORES = GroupScores({}, [], 0, 0.0, {}, None)


def roll_out_groups(
    backbone: Backbone,
    source: PhotoSource,
    rewards: RewardSet,
    scheduler: DPGScheduler,
    config: RetoucherConfig,
    step: int,
    groups: list[int],
    fitting: MicroBatch | None = None,
) -> tuple[RankGroups, GroupScores]:
    """Roll out groups one after the other, or as many as fit a micro-batch, and begin to score each as soon as it is there.

    Which photos go together follows from the configuration, never from where rewards are scored; the noise is drawn before. So the
    step is the same, bit by bit, with workers and without. Advantages need every reward of a group, and `--global-std` those of the
    step, and the next rollout needs the updated policy: rewards overlap with rollouts within a step, never across an update."""
    start = step * config.photos_per_step
    batch = source.load("train", [start + group for group in groups])
    condition = backbone.condition(batch.photos.source, config.prompt)
    anchors = None
    if config.learns_from_anchors and batch.anchors is not None:
        preferred = batch.anchors
        if config.anchor == "wrong":  # that of the photo before in the step; that of the last one for the first
            others = [(group - 1) % config.photos_per_step for group in groups]
            missing = [other for other in others if other not in groups]
            by_group = dict(zip(groups, preferred, strict=True))
            if missing and (more := source.load("train", [start + other for other in missing]).anchors) is not None:
                by_group |= dict(zip(missing, more, strict=True))
            preferred = torch.stack([by_group[other] for other in others])
        anchors = backbone.encode(preferred)
    judges = [function for function in rewards.functions.values() if isinstance(function, GroupReward)]
    before = [judge.counts.copy() for judge in judges]
    drawn = {"group_size": config.group_size, "shared_noise": config.shared_noise, "seed": config.seed, "iteration": step}
    neighbors = config.perturbation if config.loss == "neighbor" else 0.0
    noise = noise_of_groups(backbone, scheduler.drawn_steps, groups, **drawn, perturbation=neighbors)
    bf16, fitting = config.bf16_rollouts, fitting or MicroBatch(config.micro_batch)
    rollouts, pictures, scorings = [], [], []
    for rows in torch.arange(len(groups)).split(max(1, config.micro_batch // noise.group_size)):
        members = len(rows) * noise.group_size

        def sampled(size: int, rows: Tensor = rows) -> Rollout:
            return roll_out(backbone, condition, anchors, scheduler, noise, rows, batch=size, bf16=bf16)

        @torch.no_grad()
        def decoded(size: int) -> Tensor:
            drawn = zip(rollouts[-1].latents.split(size), rollouts[-1].photo_of.split(size), strict=True)
            with bf16_autocast(bf16):
                return torch.cat([backbone.decode(latents, condition.select(photo_of)) for latents, photo_of in drawn])

        rollouts.append(part := fitting.fit(members, sampled))
        pictures.append(fitting.fit(members, decoded))
        scorings.append(rewards.submit(pictures[-1], batch.photos, part.photo_of))
    rolled = time.monotonic()
    done = [scoring.result() for scoring in scorings]
    parts = {name: torch.cat([part[name] for part in done]) for name in done[0]}
    rollout, candidates, waited = join(rollouts), torch.cat(pictures), time.monotonic() - rolled
    new = [judge.counts.since(count) for judge, count in zip(judges, before, strict=True)]
    given = (candidates, batch.photos, rollout.photo_of)
    judged = judged_dimensions(rewards, *given) if new and start < RANKED_GROUPS else {}
    kinds = {"judged": judged, "checked": verifiable_dimensions(*given) if judged else {}}
    scores = GroupScores(
        parts,
        batch.ids,
        rollout.evaluations + batch.evaluations,
        waited,
        {name: sum(count[name] for count in new) for name in new[0]} if new else {},
        verifiable_reward(rewards, parts, *given) if new else None,
        {f"{kind}/{name}": values[name].cpu() for kind, values in kinds.items() for name in judged},  # where they are ranked
        diversity_of(candidates, config.group_size).sum().item(),
    )
    return RankGroups(groups, condition, rollout, candidates, batch.photos, anchors), scores


def diversity_of(candidates: Float[Tensor, "members 3 h w"], group_size: int) -> Float[Tensor, " groups"]:
    """How far apart two candidates of a group are: root mean square over pairs and pixel values in [0, 1]; groups are contiguous."""
    return torch.stack([(2 * group.float().var(0).mean()).sqrt() for group in candidates.split(group_size)])


def gather_scores(processes: Processes, scores: GroupScores, group_size: int) -> GroupScores:
    """The scores of all ranks, in the order of the groups."""
    if processes.count == 1:
        return scores
    ranks = [some for some in processes.gather(scores) if some.ids]
    names = [torch.arange(len(some.ids)) for some in ranks]
    numbers = processes.in_order([torch.stack([torch.full_like(rows, place), rows], 1) for place, rows in enumerate(names)])
    return GroupScores(
        {name: processes.in_order([some.parts[name] for some in ranks], group_size) for name in ranks[0].parts},
        [ranks[place].ids[row] for place, row in numbers.tolist()],
        sum(some.evaluations for some in ranks),
        max(some.waited for some in ranks),
        {name: sum(some.judged[name] for some in ranks) for name in ranks[0].judged},
        processes.in_order(checked, group_size) if (checked := [x.checked for x in ranks if x.checked is not None]) else None,
        {name: processes.in_order([some.dimensions[name] for some in ranks], group_size) for name in ranks[0].dimensions},
        sum(some.diversity for some in ranks),
    )


def judge_figures(rewards: RewardSet, scores: GroupScores, groups: Tensor) -> tuple[dict[str, float], dict[str, list[float]]]:
    """What the judges did in a step: how far they agree with the verifiable rewards, what was unreadable. And the rank correlations behind
    that, group by group, overall and by dimension where these are known. Both empty without a judge."""
    if scores.checked is None:
        return {}, {}
    of, names = scores.dimensions, groups.tolist()
    ranks = {"overall": ranks_in_groups(judged_reward(rewards, scores.parts), scores.checked, names)}
    ranks |= {name: ranks_in_groups(of[f"judged/{name}"], of[f"checked/{name}"], names) for name in DIMENSIONS if f"judged/{name}" in of}
    figures = {
        "judge_asked": scores.judged["asked"],
        "judge_unreadable": scores.judged["unreadable"] + scores.judged["failed"],
        "judge_flips": scores.judged["flips"],
        "verifiable": float(scores.checked.nanmean()),
        "judge_agreement": group_rank(ranks["overall"]).rank,
    }
    return figures, ranks
