"""The rewards of a run: built by name, scored together, combined into one number a candidate."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from portraitkit.errors import ConfigError
from portraitkit.suggest import nearest
from reward_models.combine import How, combine
from reward_models.photos import Photos
from reward_models.verifiable import REWARDS

RewardFunction = Callable[[Float[Tensor, "n 3 h w"], Photos], Float[Tensor, " n"]]


@runtime_checkable
class GroupReward(Protocol):
    """A reward that sees all candidates of a photo together, such as a judge. Its NaN means that a candidate could not be scored at all:
    the others of its group have this part, so what remains of its own reward is not to be compared with theirs."""

    def of_groups(self, candidates: Float[Tensor, "n 3 h w"], photos: Photos, groups: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The reward of every candidate; equal numbers in `groups` are candidates of one photo."""
        ...


LEARNED_WEIGHT = 0.2


@dataclass(frozen=True)
class RewardSet:
    """Named rewards with weights and a way to combine them.

    Attributes:
        functions: candidates and photos to values in [0, 1], NaN where a reward does not apply.
        weights: one weight a reward.
        how: see `reward_models.combine`.
        batch: candidates scored at once.
    """

    functions: dict[str, RewardFunction | GroupReward]
    weights: dict[str, float]
    how: How
    batch: int = 32

    @torch.no_grad()
    def parts(
        self, candidates: Float[Tensor, "n 3 h w"], photos: Photos, groups: Int[Tensor, " n"] | None = None
    ) -> dict[str, Float[Tensor, " n"]]:
        """Every reward of every candidate, NaN throughout where a pixel is not finite.

        Args:
            candidates: RGB, [0, 1].
            photos: photo i belongs to candidate i.
            groups: equal numbers are candidates of one photo; each is alone if not given.
        """
        groups = torch.arange(len(candidates)) if groups is None else groups
        readable = candidates.isfinite().flatten(1).all(1)
        parts = {name: self._part(function, candidates, photos, groups) for name, function in self.functions.items()}
        return {name: torch.where(readable, values, torch.nan) for name, values in parts.items()}

    def _part(self, function: RewardFunction | GroupReward, candidates: Tensor, photos: Photos, groups: Tensor) -> Float[Tensor, " n"]:
        if isinstance(function, GroupReward):
            return function.of_groups(candidates, photos, groups)
        return torch.cat([function(candidates[rows], photos.select(rows)) for rows in torch.arange(len(candidates)).split(self.batch)])

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


def build_rewards(names: tuple[str, ...], weights: tuple[float, ...], how: How, device: str = "cpu") -> RewardSet:
    """Rewards by name: a verifiable one, `clip_similarity:PATH`, `iqa:NAME` or `judge:PATH[:FORM]`.

    Args:
        names: at least one.
        weights: one a name, or empty for each reward's own.
        how: see `reward_models.combine`.
        device: of a judge that transformers runs.

    Raises:
        ConfigError: a name is unknown or comes twice, or a weight is not above 0.
        WeightsError: a learned reward's weights are not there.
    """
    if not names:
        raise ConfigError("--rewards is empty: name at least one, for example blemish_removal")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"reward {name!r} is named {names.count(name)} times: give it once, with a larger weight")
    functions: dict[str, RewardFunction | GroupReward] = {}
    defaults: dict[str, float] = {}
    for name in names:
        kind, _, argument = name.partition(":")
        if kind in REWARDS and not argument:
            functions[name], defaults[name] = REWARDS[kind], REWARDS[kind].weight
        elif kind == "clip_similarity":
            from reward_models.clip_similarity import clip_similarity

            functions[name], defaults[name] = clip_similarity(argument), LEARNED_WEIGHT
        elif kind == "iqa":
            from reward_models.iqa import iqa_reward

            functions[name], defaults[name] = iqa_reward(argument), LEARNED_WEIGHT
        elif kind == "judge":
            from reward_models.judge_reward import judge_reward

            functions[name], defaults[name] = judge_reward(argument, device=device), LEARNED_WEIGHT
        else:
            known = [*REWARDS, "clip_similarity:PATH", "iqa:NAME", "judge:PATH"]
            raise ConfigError(f"reward {name!r} is unknown{nearest(name, known)}; known: {', '.join(known)}")
    chosen = dict(zip(names, weights, strict=True)) if weights else defaults
    for name, weight in chosen.items():
        if not weight > 0:
            raise ConfigError(f"weight {weight} of reward {name!r}: must be above 0; leave the reward out instead")
    return RewardSet(functions, chosen, how)
