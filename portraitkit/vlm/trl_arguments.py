"""From our options to TRL's: checked by name, so that a misspelt one is refused before a model is loaded."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from portraitkit.errors import ConfigError
from portraitkit.suggest import nearest


def parse_extra(extra: Sequence[str], config: type) -> dict[str, Any]:
    """`name=value` options for TRL that we have no flag for; values are JSON, or text where they are no JSON.

    Args:
        extra: as typed, for example `("epsilon_high=0.28", "loss_type=dr_grpo")`.
        config: `trl.GRPOConfig` or `trl.SFTConfig`, whose fields are the names that exist.

    Raises:
        ConfigError: no `=`, or a name that TRL does not know.
    """
    known = {field.name for field in dataclasses.fields(config)}
    values = {}
    for item in extra:
        name, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"--trl {item}: must be name=value, such as epsilon_high=0.28")
        if name not in known:
            raise ConfigError(f"--trl {item}: {config.__name__} has no {name!r}{nearest(name, sorted(known))}")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def build_arguments(config: type, values: Mapping[str, Any]) -> Any:
    """TRL's configuration; what it refuses is the user's mistake, in one line.

    Raises:
        ConfigError: TRL or transformers refuse a value or a combination.
    """
    try:
        return config(**values)
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        message = " ".join(str(error).split())
        raise ConfigError(f"TRL refuses these settings: {message}") from error
