"""The rewards of a run: built by name, scored together, combined into one number a candidate."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from portraitkit.errors import ConfigError, nearest
from reward_models.judge.reward import JudgeReward, judge_reward
from reward_models.learned import arcface_reward, clip_similarity, iqa_reward
from reward_models.photos import Photos
from reward_models.reward import Elsewhere, GroupReward, How, Parts, RewardFunction, combine
from reward_models.verifiable import REWARDS
from reward_models.workers.client import RewardWorkers, stand_in

LEARNED_WEIGHT = 0.2
LEARNED = ("clip_similarity", "iqa", "arcface", "judge")  # Kinds of rewards that have weights; what follows the colon says which


@dataclass(frozen=True)
class Unit:
    """Candidates that are scored together: those of a group, or some that are alone."""

    rows: Int[Tensor, " k"]  # where they are among all candidates
    here: Parts  # their rewards that were scored in this process
    there: Sequence[Future[Parts]]  # the others, under way


@dataclass(frozen=True)
class Scoring:
    """Rewards under way."""

    names: Sequence[str]  # of the rewards, in the order of the parts
    units: Sequence[Unit]  # together all candidates

    def result(self) -> Parts:
        """Every reward of every candidate, once all are there: a number each, on the CPU, wherever it was scored."""
        order = torch.cat([unit.rows for unit in self.units])
        done = [unit.here | {name: values for part in unit.there for name, values in part.result().items()} for unit in self.units]
        parts = {}
        for name in self.names:
            values = torch.cat([unit[name].cpu() for unit in done])  # a number a candidate
            parts[name] = torch.empty_like(values).index_copy_(0, order, values)
        return parts


@dataclass(frozen=True)
class RewardSet:
    """Named rewards with weights and a way to combine them."""

    # candidates and photos (one each, or one for all) to values in [0, 1], NaN where a reward does not apply
    functions: dict[str, RewardFunction | GroupReward]
    weights: dict[str, float]  # one weight a reward
    how: How  # see `reward.combine`
    batch: int = 32  # candidates scored at once
    elsewhere: Elsewhere | None = None  # scores the rewards in `served`; None where all are scored in this process
    served: tuple[str, ...] = ()  # names of the rewards that are scored elsewhere

    def parts(self, candidates: Float[Tensor, "n 3 h w"], photos: Photos, photo_of: Int[Tensor, " n"] | None = None) -> Parts:
        """Every reward of every candidate (RGB, [0, 1]), NaN throughout where a pixel is not finite. If it is not said which photo each is
        of (`photo_of`), photo i belongs to candidate i, which is alone in its group."""
        return self.submit(candidates, photos, photo_of).result()

    @torch.no_grad()
    def submit(self, candidates: Float[Tensor, "n 3 h w"], photos: Photos, photo_of: Int[Tensor, " n"] | None = None) -> Scoring:
        """Begin to score; see `parts`. What is scored elsewhere is under way when this returns, the rest is done.

        A group is scored as a unit of its own, and candidates that are alone in units of `batch`, here as elsewhere: what shares a
        batch decides the last bits of a value, so these do not depend on where it was computed, nor on what else was scored.
        """
        if photo_of is None:
            rows = list(torch.arange(len(candidates)).split(self.batch))
            of_rows = [photos.select(slice(start, start + self.batch)) for start in range(0, len(candidates), self.batch)]
        else:
            photo_indices = list(dict.fromkeys(photo_of.tolist()))
            rows = [(photo_of == index).nonzero()[:, 0] for index in photo_indices]
            of_rows = [photos.select(slice(index, index + 1)) for index in photo_indices]
        chosen = [(candidates[unit], unit_photos) for unit, unit_photos in zip(rows, of_rows, strict=True)]
        there = [self.elsewhere.submit(self.served, *unit) if self.elsewhere else [] for unit in chosen]
        here = [name for name in self.functions if name not in self.served]
        done = [self.score_unit(here, *unit) for unit in chosen]
        return Scoring(list(self.functions), [Unit(*unit) for unit in zip(rows, done, there, strict=True)])

    @torch.no_grad()
    def score_unit(self, names: Sequence[str], candidates: Float[Tensor, "n 3 h w"], photos: Photos) -> Parts:
        """Some rewards of the candidates of one unit, computed in this process; the arguments are those of `Elsewhere.submit`."""
        readable = candidates.isfinite().flatten(1).all(1)
        parts = {name: self._part(self.functions[name], candidates, photos) for name in names}
        return {name: torch.where(readable, values, torch.nan) for name, values in parts.items()}

    def _part(self, function: RewardFunction | GroupReward, candidates: Tensor, photos: Photos) -> Float[Tensor, " n"]:
        if isinstance(function, GroupReward):
            return function.of_groups(candidates, photos, torch.arange(len(photos)).expand(len(candidates)))
        if len(candidates) <= self.batch:
            return function(candidates, photos)
        rows = [slice(start, start + self.batch) for start in range(0, len(candidates), self.batch)]
        return torch.cat([function(candidates[some], photos if len(photos) == 1 else photos.select(some)) for some in rows])

    def combined(self, parts: dict[str, Float[Tensor, " n"]]) -> Float[Tensor, " n"]:
        """One reward in [0, 1] a candidate, NaN where none applies or a `GroupReward` has no value."""
        return self.drop_unscored(combine(parts, self.weights, self.how), parts)

    def drop_unscored(self, values: Float[Tensor, " n"], parts: dict[str, Float[Tensor, " n"]]) -> Float[Tensor, " n"]:
        """The values, NaN where a `GroupReward` has none."""
        for name in self.group_rewards:
            values = torch.where(parts[name].isfinite(), values, torch.nan)
        return values

    @property
    def group_rewards(self) -> list[str]:
        """Names of the rewards that see whole groups."""
        return [name for name, function in self.functions.items() if isinstance(function, GroupReward)]


def check_names(names: Sequence[str]) -> None:
    """ConfigError for no name, one that comes twice, or one that no reward has, before anything is loaded."""
    if not names:
        raise ConfigError("--rewards is empty: name at least one, for example blemish_removal")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"reward {name!r} is named {names.count(name)} times: give it once, with a larger weight")
        kind, _, argument = name.partition(":")
        if not (kind in REWARDS and not argument) and kind not in LEARNED:
            known = [*REWARDS, "clip_similarity:PATH", "iqa:NAME", "arcface", "judge:PATH"]
            raise ConfigError(f"reward {name!r} is unknown{nearest(name, known)}; known: {', '.join(known)}")


def build_rewards(
    names: tuple[str, ...], weights: tuple[float, ...], how: How, device: str = "cpu", *, workers: RewardWorkers | None = None
) -> RewardSet:
    """Rewards by name: a verifiable one, `clip_similarity:PATH`, `iqa:NAME`, `arcface[:PATH]` or `judge:PATH[:FORM]`, with a weight each,
    or their own if none are given. Workers score what they serve; its weights are not loaded here.
    ConfigError: a name is unknown or comes twice, or a weight is not above 0.
    WeightsError: a learned reward's weights are not there."""
    check_names(names)
    served = tuple(name for name in names if workers is not None and name in workers.served)
    learned = {"clip_similarity": clip_similarity, "iqa": iqa_reward, "arcface": partial(arcface_reward, device=device)}
    learned["judge"] = partial(judge_reward, device=device)
    functions: dict[str, RewardFunction | GroupReward] = {}
    for name in names:
        kind, _, argument = name.partition(":")
        there = workers is not None and name in served
        functions[name] = stand_in(name, workers) if there else REWARDS[name] if name in REWARDS else learned[kind](argument)
    defaults = {name: REWARDS[name].weight if name in REWARDS else LEARNED_WEIGHT for name in names}
    chosen = dict(zip(names, weights, strict=True)) if weights else defaults
    for name, weight in chosen.items():
        if not weight > 0:
            raise ConfigError(f"weight {weight} of reward {name!r}: must be above 0; leave the reward out instead")
    return RewardSet(functions, chosen, how, elsewhere=workers, served=served)


# ---- the verifiable rewards as an independent check of a judge, whether or not they are part of what is maximised

CHECKS: dict[str, tuple[str, ...]] = {
    "skin_smoothing": ("texture",),
    "blemish_removal": ("blemish_removal",),
    "texture": ("texture", "skin_tone"),
    "clarity": ("clarity",),
    "identity": ("identity", "own_color"),
}
"""The verifiable rewards that say what a judge's dimension asks (`preference_data.schema.QUESTIONS`)."""


@torch.no_grad()
def verifiable_reward(
    rewards: RewardSet, parts: Parts, candidates: Float[Tensor, "n 3 h w"], photos: Photos, photo_of: Int[Tensor, " n"] | None = None
) -> Float[Tensor, " n"]:
    """All verifiable rewards at their own weights, combined as the run combines; those that `parts` has are not computed again.

    Candidates, photos and photo_of are as in `RewardSet.parts`.
    """
    missing = RewardSet({name: reward for name, reward in REWARDS.items() if name not in parts}, {}, rewards.how, rewards.batch)
    known = {name: values for name, values in parts.items() if name in REWARDS} | missing.parts(candidates, photos, photo_of)
    return combine(known, {name: REWARDS[name].weight for name in known}, rewards.how)


def judged_reward(rewards: RewardSet, parts: Parts) -> Float[Tensor, " n"]:
    """The mean of the judges' values, NaN where none has one."""
    return torch.stack([parts[name] for name in rewards.group_rewards]).nanmean(0)


def verifiable_dimensions(
    candidates: Float[Tensor, "n 3 h w"], photos: Photos, photo_of: Int[Tensor, " n"] | None = None
) -> dict[str, Float[Tensor, " n"]]:
    """What is verifiable on each dimension of a judge, and overall (all verifiable rewards), combined by `product`, in [0, 1].

    Candidates, photos and photo_of are as in `RewardSet.parts`.
    """
    weights = {name: reward.weight for name, reward in REWARDS.items()}
    parts = RewardSet(dict(REWARDS), weights, "product").parts(candidates, photos, photo_of)
    of = {"overall": tuple(REWARDS)} | CHECKS
    return {name: combine({part: parts[part] for part in some}, weights) for name, some in of.items()}


def judged_dimensions(
    rewards: RewardSet, candidates: Float[Tensor, "n 3 h w"], photos: Photos, photo_of: Int[Tensor, " n"]
) -> dict[str, Float[Tensor, " n"]]:
    """Expected scores of the first judge in this process, by dimension; empty where judges are elsewhere."""
    judge = next((function for function in rewards.functions.values() if isinstance(function, JudgeReward)), None)
    return {} if judge is None else judge.dimensions(candidates, photos, photo_of)
