"""The rewards of a run: built by name, scored together, combined into one number a candidate."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from portraitkit.errors import ConfigError
from portraitkit.suggest import nearest
from reward_models.combine import How, combine
from reward_models.photos import Photos
from reward_models.verifiable import REWARDS

RewardFunction = Callable[[Float[Tensor, "n 3 h w"], Photos], Float[Tensor, " n"]]
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

    functions: dict[str, RewardFunction]
    weights: dict[str, float]
    how: How
    batch: int = 32

    @torch.no_grad()
    def parts(self, candidates: Float[Tensor, "n 3 h w"], photos: Photos) -> dict[str, Float[Tensor, " n"]]:
        """Every reward of every candidate, NaN throughout where a pixel is not finite; photo i belongs to candidate i."""
        rows = torch.arange(len(candidates)).split(self.batch)
        readable = candidates.isfinite().flatten(1).all(1)
        parts = {
            name: torch.cat([function(candidates[part], photos.select(part)) for part in rows]) for name, function in self.functions.items()
        }
        return {name: torch.where(readable, values, torch.nan) for name, values in parts.items()}

    def combined(self, parts: dict[str, Float[Tensor, " n"]]) -> Float[Tensor, " n"]:
        """One reward in [0, 1] a candidate, NaN where none applies."""
        return combine(parts, self.weights, self.how)


def build_rewards(names: tuple[str, ...], weights: tuple[float, ...], how: How) -> RewardSet:
    """Rewards by name: a verifiable one, `clip_similarity:PATH` or `iqa:NAME`.

    Args:
        names: at least one.
        weights: one a name, or empty for each reward's own.
        how: see `reward_models.combine`.

    Raises:
        ConfigError: a name is unknown, or a weight is not above 0.
        WeightsError: a learned reward's weights are not there.
    """
    if not names:
        raise ConfigError("--rewards is empty: name at least one, for example blemish_removal")
    functions: dict[str, RewardFunction] = {}
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
        else:
            known = [*REWARDS, "clip_similarity:PATH", "iqa:NAME"]
            raise ConfigError(f"reward {name!r} is unknown{nearest(name, known)}; known: {', '.join(known)}")
    chosen = dict(zip(names, weights, strict=True)) if weights else defaults
    for name, weight in chosen.items():
        if not weight > 0:
            raise ConfigError(f"weight {weight} of reward {name!r}: must be above 0; leave the reward out instead")
    return RewardSet(functions, chosen, how)
