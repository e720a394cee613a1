"""One reward out of several: weighted product, sum or minimum, with parts that do not apply left out."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from portraitkit.errors import ConfigError

How = Literal["product", "sum", "minimum"]
FLOOR = 0.02


def combine(parts: dict[str, Float[Tensor, " n"]], weights: dict[str, float], how: How = "product") -> Float[Tensor, " n"]:
    """Combine rewards in [0, 1] into one in [0, 1].

    Args:
        parts: one value a candidate and reward; NaN where a reward does not apply to that candidate.
        weights: positive weight of every part; those of parts that do not apply are shared among the rest.
        how: `product` is the weighted geometric mean (each part at least .02), under which no part can be bought with another;
            `sum` the weighted mean; `minimum` the worst part, weights unused.

    Returns:
        The combined reward; NaN where no part applies.

    Raises:
        ConfigError: a part has no positive weight.
    """
    for name in parts:
        if weights.get(name, 0.0) <= 0:
            raise ConfigError(f"reward {name!r} has weight {weights.get(name)}: every reward in use needs a weight above 0")
    values = torch.stack(list(parts.values()))
    applies = values.isfinite()
    weight = values.new_tensor([weights[name] for name in parts])[:, None] * applies
    weight = weight / weight.sum(0).clamp_min(1e-12)
    if how == "product":
        out = torch.exp((weight * values.nan_to_num(1.0).clamp_min(FLOOR).log()).sum(0))
    elif how == "sum":
        out = (weight * values.nan_to_num(0.0)).sum(0)
    elif how == "minimum":
        out = torch.where(applies, values, torch.inf).amin(0)
    else:
        raise ConfigError(f"reward combination {how!r} is unknown: use product, sum or minimum")
    return torch.where(applies.any(0), out, torch.nan)
