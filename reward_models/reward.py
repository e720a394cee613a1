"""What a reward is to the rest of the package, and how several become one number.

A reward takes candidates and photos (one each, or one for all) and returns one value in [0, 1] a candidate, higher is better, NaN where
it does not apply.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from portraitkit.errors import ConfigError
from reward_models.judge.judge import Counts
from reward_models.photos import Photos
from reward_models.verifiable import GUARDS

How = Literal["product", "sum", "minimum"]
FLOOR = 0.02
RewardFunction = Callable[[Float[Tensor, "n 3 h w"], Photos], Float[Tensor, " n"]]
Parts = dict[str, Float[Tensor, " n"]]


@runtime_checkable
class GroupReward(Protocol):
    """A reward that sees all candidates of a photo together: a judge, in this process or behind a worker. Its NaN means that a candidate
    could not be scored at all: the others of its group have this part, so what remains of its own reward is not to be compared with theirs.
    """

    @property
    def needs_anchors(self) -> bool:
        """Whether photos without a preferred retouch have no value."""
        ...

    @property
    def counts(self) -> Counts:
        """What the judge was asked so far."""
        ...

    def of_groups(self, candidates: Float[Tensor, "n 3 h w"], photos: Photos, photo_of: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The reward of every candidate; candidate i is a retouch of photo `photo_of[i]`, together with all others of that photo."""
        ...


@runtime_checkable
class Elsewhere(Protocol):
    """What scores some of the rewards outside this process: `reward_models.workers.client.RewardWorkers`, or a test's."""

    def submit(self, names: Sequence[str], candidates: Float[Tensor, "n 3 h w"], photos: Photos) -> "Sequence[Future[Parts]]":
        """Begin to score one unit, whose photos are one, whose group the candidates are, or one a candidate, each a group of its own; the
        parts of the futures together have every reward in `names`, which it serves."""
        ...


def combine(parts: dict[str, Float[Tensor, " n"]], weights: dict[str, float], how: How = "product") -> Float[Tensor, " n"]:
    """Combine rewards in [0, 1] into one in [0, 1], NaN where no part applies.

    Args:
        parts: one value a candidate and reward; NaN where a reward does not apply to that candidate.
        weights: positive weight of every part; those of parts that do not apply are shared among the rest.
        how: `product` is the weighted geometric mean (each part at least .02), under which no part can be bought with another;
            `sum` the weighted mean; `minimum` the worst part, weights unused. Under the first two a guard (`verifiable.GUARDS`) is no
            part of the mean: the mean is multiplied by it, taken to the power of its weight.

    Raises:
        ConfigError: a part has no positive weight.
    """
    for name in parts:
        if weights.get(name, 0.0) <= 0:
            raise ConfigError(f"reward {name!r} has weight {weights.get(name)}: every reward in use needs a weight above 0")
    values = torch.stack(list(parts.values()))
    applies = values.isfinite()
    weight = values.new_tensor([weights[name] for name in parts])[:, None] * applies
    logs = values.nan_to_num(1.0).clamp_min(FLOOR).log()
    guards = values.new_tensor([name in GUARDS for name in parts])[:, None] * weight
    guarded = torch.exp((guards * logs).sum(0))
    weight = weight - guards
    weight = weight / weight.sum(0).clamp_min(1e-12)
    if how == "product":
        out = torch.exp((weight * logs).sum(0)) * guarded
    elif how == "sum":
        out = (1 + (weight * (values.nan_to_num(0.0) - 1)).sum(0)) * guarded
    elif how == "minimum":
        out = torch.where(applies, values, torch.inf).amin(0)
    else:
        raise ConfigError(f"reward combination {how!r} is unknown: use product, sum or minimum")
    return torch.where(applies.any(0), out, torch.nan)
