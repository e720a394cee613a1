"""From our options to TRL's: checked by name and type, so that a slip is refused before a model is loaded."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from portraitkit.errors import ConfigError
from portraitkit.suggest import nearest

SAID = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list in JSON",
    dict: "an object in JSON",
    NoneType: "null",
}
"""How types are called in messages."""


def parse_extra(extra: Sequence[str], config: type) -> dict[str, Any]:
    """`name=value` options for TRL that we have no flag for; values are JSON, or text where they are no JSON or text is asked for.

    Args:
        extra: as typed, for example `("epsilon_high=0.28", "loss_type=dr_grpo")`.
        config: `trl.GRPOConfig` or `trl.SFTConfig`, whose fields are the names that exist, with their types.

    Raises:
        ConfigError: no `=`, a name that TRL does not know, or a value of another type than its field's.
    """
    types = get_type_hints(config)
    known = {field.name: types[field.name] for field in dataclasses.fields(config)}
    values = {}
    for item in extra:
        name, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"--trl {item}: must be name=value, such as epsilon_high=0.28")
        if name not in known:
            raise ConfigError(f"--trl {item}: {config.__name__} has no {name!r}{nearest(name, sorted(known))}")
        fitting = [value for value in (*_read_json(text), text) if _fits(value, known[name])]
        if not fitting:
            raise ConfigError(f"--trl {item}: must be {' or '.join(dict.fromkeys(_say(known[name])))}")
        values[name] = fitting[0]
    return values


def _read_json(text: str) -> list[Any]:
    """The value that a text is the JSON of, alone in a list; nothing where it is none. NaN and infinity are no JSON."""
    try:
        return [json.loads(text, parse_constant=_refuse)]
    except (ValueError, RecursionError):
        return []


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of an annotated type; whole numbers are numbers, true and false are neither."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is list:
        return isinstance(value, list) and all(_fits(one, inner[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, inner[1]) for one in value.values())
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return value in [one.value for one in kind]
    return kind is Any or isinstance(value, kind)


def _say(kind: Any) -> list[str]:
    """What an annotated type takes, in words; nothing for what cannot be typed."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return [words for one in inner for words in _say(one)]
    if origin is Literal:
        return [json.dumps(one) for one in inner]
    return [SAID[base]] if (base := origin or kind) in SAID else []


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
