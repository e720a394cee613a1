"""Configuration: a frozen dataclass filled from a recipe (TOML) and the command line, both strict.

Field types: bool, int, float, str, Path, Literal, `tuple[X, ...]`, and any of them `| None`. The docstring under a
field is its help text. What a number may be, and whether a resumed run may change it, stands in the field's type:

    @dataclass(frozen=True)
    class TrainConfig(Options):
        num_steps: Annotated[int, Range(ge=1)] = 8
        max_unusable: Share = 0.1
        report_to: Annotated[tuple[str, ...], MAY_CHANGE] = ()

Rules between fields belong in a method `check` (see `Options`); it sees the recipe and the command line together, never the
recipe alone.
"""

import json
import math
import operator
import os
import shlex
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from portraitkit.config_help import Positional as Positional  # for those who write options
from portraitkit.config_help import Repeatable, field_docs, flag_of, format_help, groups, marks_of, option_words, positionals
from portraitkit.errors import ConfigError, nearest

RECIPES = Path(__file__).parent / "recipes"
SAID = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path", NoneType: "None"}
SAID |= {list: "a list in JSON", dict: "an object in JSON"}  # Of options for TRL
MAY_CHANGE = "may change on resume"  # Mark (`Annotated`) of a field that a resumed run may change, because no result follows from it


@dataclass(frozen=True)
class Range:
    """Bounds of a number, as a mark on its field: `Annotated[int | None, Range(ge=1)]`. None is always allowed."""

    ge: float | None = None  # smallest value
    gt: float | None = None  # the value is above this
    le: float | None = None  # largest value
    lt: float | None = None  # the value is below this
    rule: str = ""  # what the refusal says, where figures alone do not say enough

    def holds(self, value: float) -> bool:
        """Whether a number lies inside; NaN never does."""
        bounds = ((operator.ge, self.ge), (operator.gt, self.gt), (operator.le, self.le), (operator.lt, self.lt))
        return all(bound is None or compare(value, bound) for compare, bound in bounds)

    def __str__(self) -> str:
        """The rule in words."""
        bounds = {"at least": self.ge, "above": self.gt, "at most": self.le, "below": self.lt}
        return self.rule or "must be " + " and ".join(f"{words} {bound}" for words, bound in bounds.items() if bound is not None)


AtLeast0 = Annotated[int, Range(ge=0, rule="must be 0 or more")]
AtLeast1 = Annotated[int, Range(ge=1, rule="must be 1 or more")]
Positive = Annotated[float, Range(gt=0, rule="must be above 0")]
NotNegative = Annotated[float, Range(ge=0, rule="must be 0 or more")]
Share = Annotated[float, Range(ge=0, le=1, rule="must be a share from 0 to 1")]
Seed = Annotated[int, Range(ge=0, lt=2**63, rule="must be between 0 and 2^63 - 1")]
Port = Annotated[int, Range(ge=0, le=65535, rule="must be between 0 (any free one) and 65535")]


class Options:
    """Base of every command's frozen dataclass of options.

    A class may define `check(self)`, which raises ConfigError where its options contradict each other. The checks of all bases run
    first, then its own, without a call of super.
    """

    REMOVED: ClassVar[dict[str, str]] = {}
    """Options that the command had once, and values ("option value") that one had, with what to use in their place."""

    @classmethod
    def of(cls, **values: Any) -> Self:
        """The configuration of a recipe with these values, as the command line would have it."""
        (config := cls(**cls.revise(values, {}))).check_given(values)
        return config

    @classmethod
    def revise(cls, values: dict[str, Any], typed: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """The values of the recipe that count beneath the options that were `typed`; commands add what their model needs, see
        `lay_beneath`."""
        return values

    @classmethod
    def chosen(cls, values: Mapping[str, Any], typed: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """The options as far as they are known before they are parsed: what was typed (as text), else the recipe's, else the default."""
        defaults = {field.name: field.default for field in fields(cls)}  # type: ignore[arg-type]
        return defaults | dict(values) | {name: words[0] for name, words in typed.items() if words}

    def check_given(self, names: Collection[str], recipe: Collection[str] = ()) -> None:
        """A class may refuse options that are given, after `check` and whatever their value; those of `recipe` by --config alone."""

    def __init_subclass__(cls) -> None:
        if "__post_init__" in vars(cls):
            raise TypeError(f"{cls.__name__}.__post_init__ would skip the bounds of the fields; name it check")

    def __post_init__(self) -> None:
        """Refuse numbers out of their fields' bounds, then what the classes' `check` refuses; ConfigError names the first and its rule."""
        for name, marks in marks_of(type(self)).items():
            value = getattr(self, name)
            for bounds in marks:
                if isinstance(bounds, Range) and value is not None and not bounds.holds(value):
                    raise ConfigError(f"{flag_of(name)} {value:{'g' if isinstance(value, float) else ''}}: {bounds}")
        for cls in reversed(type(self).__mro__):
            if check := vars(cls).get("check"):
                check(self)


Config = TypeVar("Config", bound=Options)


def may_change(cls: type[Options]) -> frozenset[str]:
    """Options that a resumed run may change, those among them that are gone."""
    return frozenset([name for name, marks in marks_of(cls).items() if MAY_CHANGE in marks] + [*cls.REMOVED])


def load_config(cls: type[Config], argv: list[str], *, prog: str, example: str = "") -> Config:
    """Fill a configuration from its defaults, then `--config NAME|FILE.toml`, then the options in `argv`, with dashes or underscores.

    `--help` prints and exits with 0; with `--config` beside it the defaults shown are the recipe's. `prog` is the command's name, `example`
    the options of a typical call, for its help.

    Raises:
        ConfigError: an unknown option, key or recipe (with the nearest known one), a value of another type, or what the
            dataclass itself refuses.
    """
    types = _types(cls)
    given, unnamed = _typed(argv, cls, prog)
    positional = dict(zip(positionals(cls), ([word] for word in unnamed), strict=False))
    source = given.pop("config", None)
    if source is not None and not any(source):
        raise ConfigError("--config needs a value: the name of a recipe or a .toml file")
    recipe = _read_recipe(source[0], cls) if source else {}
    values = cls.revise(recipe, given)
    if {"-h", "--help"} & set(argv):
        print(format_help(cls, values, prog=prog, example=example, recipes=recipe_names(cls)))
        raise SystemExit(0)
    for name, words in (given | positional).items():
        switched = name not in types
        if (field := name.removeprefix("no_") if switched else name) in types:
            values = values | {field: not switched if types[field] is bool else _read_words(field, words, types[field])}
    required = [field.name for field in fields(cls) if field.default is MISSING and field.default_factory is MISSING]  # type: ignore[arg-type]
    if lacking := [name for name in required if name not in values]:
        named = [f"{option_words(cls, name)} ({field_docs(cls).get(name)})" for name in lacking]
        raise ConfigError(f"Missing from {prog}: {', '.join(named)}; see {prog} --help")
    config = cls(**values)
    if stray := [word for word in unnamed if word.startswith("-") and word != "-"] or unnamed[len(positional) :]:
        raise ConfigError(
            f"unexpected argument {stray[0]!r}: options begin with --, values with spaces need quotes, and on/off "
            f"options take no value; see {prog} --help"
        )
    for name in types:
        value = getattr(config, name)
        for item in value if isinstance(value, tuple) else (value,):
            most = 2**63 if isinstance(item, int) else 1e16
            if isinstance(item, int | float) and not abs(item) < most:
                size = f" below {most:g} in size" if abs(item) < math.inf else ""
                raise ConfigError(f"{flag_of(name)} {item}: must be a finite number{size}")
    config.check_given({*recipe, *given}, recipe.keys() - given.keys())
    return config


def config_to_dict(config: Any) -> dict[str, Any]:
    """The configuration as JSON takes it: paths as text, tuples as lists, options in the order of `--help`."""
    values = json.loads(json.dumps(asdict(config), default=os.fspath))
    return {name: values[name] for names in groups(type(config)).values() for name in names}


def recipe_names(cls: type) -> list[str]:
    """Names of the built-in recipes that fit a configuration: those whose every key is one of its fields."""
    known = {field.name for field in fields(cls)}
    return sorted(path.stem for path in RECIPES.glob("*.toml") if _read_toml(path).keys() <= known)


def lay_beneath(recipe: str, cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, and for options that they do not name those of a built-in recipe; its keys that are no fields are left out."""
    types = _types(cls)
    below = {name: _convert(types[name], value) for name, value in _read_toml(RECIPES / f"{recipe}.toml").items() if name in types}
    return below | dict(values)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # no TOML, not UTF-8, a number of thousands of digits, nested too deep
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def _types(cls: type) -> dict[str, Any]:
    """The fields with their types."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def _read_recipe(source: str, cls: type[Options]) -> dict[str, Any]:
    path, values, types = Path(source), {}, _types(cls)
    if not source.endswith(".toml") and os.sep not in source:
        path = RECIPES / f"{source}.toml"
        if not path.is_file():
            names = recipe_names(cls)
            known = ", ".join(names) or "none"
            raise ConfigError(f"--config {source}: no such recipe{nearest(source, names)}; known: {known}, or the path of a .toml file")
    for key, value in _read_toml(path).items():
        gone = key if key in cls.REMOVED else f"{key} {value}"
        if gone in cls.REMOVED:
            raise ConfigError(f"{path}: the option {gone} is gone: {cls.REMOVED[gone]}")
        if key not in types:
            raise ConfigError(f"{path}: unknown option {key!r}{nearest(key, types)}")
        try:
            values[key] = _convert(types[key], value)
        except (ValueError, OverflowError):
            shown = str(value).lower() if isinstance(value, bool) else repr(value)
            raise ConfigError(f"{path}: {key} = {shown}: must be {wanted(types[key])}") from None
    return values


def _convert(annotation: Any, value: Any, *, text: bool = False) -> Any:
    """A TOML value as the annotation has it; no guessing: `"5"` is no number, `1` is not true, `1.0` is not whole. With `text` the value
    is what was typed, or a list of that."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        for choice in sorted(inner, key=lambda choice: choice is not NoneType):
            try:
                return _convert(choice, value, text=text)
            except ValueError:
                continue
    elif origin is tuple and isinstance(value, list):
        return tuple(_convert(inner[0], item, text=text) for item in value)
    elif origin is Literal:
        for choice in inner:
            if value == (str(choice) if text else choice) and (text or type(value) is type(choice)):
                return choice
    elif text and annotation is NoneType and value == "None":
        return None
    elif text and annotation in (int, float, str, Path):
        return annotation(value)
    elif annotation is float and type(value) in (int, float):
        return float(value)
    elif annotation is Path and isinstance(value, str) and "\0" not in value:
        return Path(value)
    elif annotation in (bool, int, str) and type(value) is annotation and "\0" not in str(value):  # which would end a path
        return value
    raise ValueError


def wanted(annotation: Any) -> str:
    """The values an annotation takes, in words; empty for what cannot be typed."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(filter(None, map(wanted, inner))))
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple:
        return f"a list, each item {wanted(inner[0])}"
    return SAID.get(origin or annotation, "")


def _typed(argv: list[str], cls: type[Options], prog: str) -> tuple[dict[str, list[str]], list[str]]:
    """Options on the command line with the words typed for them, and words without one; unknown ones are refused by name.

    Of an option given twice the last one counts, as everywhere; but a list would lose its first values unnoticed.
    """
    named = {name: annotation for name, annotation in _types(cls).items() if name not in positionals(cls)} | {"config": str}
    known = [*named, *(f"no_{name}" for name, annotation in named.items() if annotation is bool), "help"]
    given: dict[str, list[str]] = {}
    stray: list[str] = []
    words, room = stray, math.inf
    for token in argv:
        if not token.startswith("--"):
            words, room = (words, room - 1) if room > 0 else (stray, math.inf)
            words.append(token)
            continue
        flag, equals, value = token.partition("=")
        name = flag[2:].replace("-", "_")
        if name in cls.REMOVED:
            raise ConfigError(f"{flag} is gone: {cls.REMOVED[name]}")
        if name not in known:
            raise ConfigError(f"unknown option {flag}{nearest(flag_of(name), map(flag_of, known))}; see {prog} --help")
        again = any(isinstance(mark, Repeatable) for mark in marks_of(cls).get(name, ()))
        many = get_origin(named.get(name)) is tuple
        if name in given and name == "config":
            raise ConfigError("--config was given twice: name one recipe, then override its values by options")
        if name in given and many and not again:
            raise ConfigError(f"{flag} is given twice: give all its values after one {flag}")
        words = given[name] = given.get(name, []) if again else []
        room = math.inf if many else 0 if named.get(name, bool) is bool else 1
        if equals:
            (words if room else stray).append(value)
            room = room if again else 0
    for name, words in given.items():
        if words and (gone := f"{name} {words[0]}") in cls.REMOVED:
            raise ConfigError(f"{flag_of(name)} {words[0]} is gone: {cls.REMOVED[gone]}")
    return given, stray


def _read_words(name: str, words: list[str], annotation: Any) -> Any:
    """What was typed for an option, as its type has it."""
    many = get_origin(annotation) is tuple
    if not many and not words:
        raise ConfigError(f"{flag_of(name)} needs a value: {wanted(annotation)}")
    try:
        return _convert(annotation, words if many else words[0], text=True)
    except ValueError:
        near = nearest(words[0], map(str, get_args(annotation))) if get_origin(annotation) is Literal else ""
        raise ConfigError(f"{flag_of(name)} {shlex.join(words)}: must be {wanted(annotation)}{near}") from None
