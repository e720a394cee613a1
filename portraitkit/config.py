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

import io
import json
import math
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from portraitkit.config_help import groups
from portraitkit.errors import ConfigError, nearest

RECIPES = Path(__file__).parent / "recipes"
REPEATABLE = "repeatable"
"""Mark (`Annotated`) of a list whose option may also be given again for every value: `--method a --method b` is `--method a b`."""
MAY_CHANGE = "may change on resume"  # Mark of a field that a resumed run may change, because no result follows from it


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
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
            and not math.isnan(value)
        )

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
        """The values that count beneath the options that were typed; commands add what their model needs, see `lay_beneath`.

        Args:
            values: of the recipe.
            typed: options of the command line, with the words behind them.
        """
        return values

    @classmethod
    def chosen(cls, values: Mapping[str, Any], typed: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """The options as far as they are known before they are parsed: what was typed (as text), else the recipe's, else the default."""
        defaults = {field.name: field.default for field in fields(cls)}  # type: ignore[arg-type]
        return defaults | dict(values) | {name: words[0] for name, words in typed.items() if words}

    def check_given(self, names: Collection[str]) -> None:
        """A class may refuse options that a recipe or the command line names, after `check` and whatever their value."""

    def __init_subclass__(cls) -> None:
        if "__post_init__" in vars(cls):
            raise TypeError(f"{cls.__name__}.__post_init__ would skip the bounds of the fields; name it check")

    def __post_init__(self) -> None:
        """Refuse numbers out of their fields' bounds, then what the classes' `check` refuses; ConfigError names the first and its rule."""
        for name, marks in _marks(type(self)).items():
            value = getattr(self, name)
            for bounds in marks:
                if isinstance(bounds, Range) and value is not None and not bounds.holds(value):
                    raise ConfigError(f"--{name.replace('_', '-')} {value:{'g' if isinstance(value, float) else ''}}: {bounds}")
        for cls in reversed(type(self).__mro__):
            if check := vars(cls).get("check"):
                check(self)


Config = TypeVar("Config", bound=Options)


def may_change(cls: type[Options]) -> frozenset[str]:
    """Options that a resumed run may change, those among them that are gone."""
    return frozenset([name for name, marks in _marks(cls).items() if MAY_CHANGE in marks] + [*cls.REMOVED])


@cache
def _marks(cls: type) -> dict[str, tuple[Any, ...]]:
    """What stands beside the types of the fields."""
    return {name: get_args(hint)[1:] for name, hint in get_type_hints(cls, include_extras=True).items() if get_origin(hint) is Annotated}


def load_config(cls: type[Config], argv: list[str], *, prog: str, example: str = "") -> Config:
    """Fill a configuration from its defaults, then `--config NAME|FILE.toml`, then the options in `argv`.

    `--help` prints and exits with 0; with `--config` beside it the defaults shown are the recipe's.

    Args:
        cls: Frozen dataclass with the field types named at the top of this module.
        argv: Arguments after the command's name; options with dashes or underscores.
        prog: Name of the command, for messages.
        example: Options of a typical call, shown by `--help`.

    Returns:
        The validated configuration.

    Raises:
        ConfigError: an unknown option, key or recipe (with the nearest known one), a value of another type, or what the
            dataclass itself refuses.
    """
    types = _types(cls)
    source, argv = _take_recipe(_join_repeated(argv, {name for name, marks in _marks(cls).items() if REPEATABLE in marks}))
    values = _read_recipe(_find_recipe(source, cls), cls) if source else {}
    given = _options_given(argv, cls, prog)
    start = _unchecked(cls, cls.revise(values, given))
    if {"-h", "--help"} & set(argv):
        from portraitkit.config_help import format_help

        print(format_help(start, prog=prog, example=example, recipes=recipe_names(cls)))
        raise SystemExit(0)
    import tyro

    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            config, unexpected = tyro.cli(cls, prog=prog, args=argv, default=start, return_unknown_args=True)
    except SystemExit:
        raise ConfigError(_refusal(printed.getvalue(), given, types, prog)) from None
    sys.stderr.write(printed.getvalue())
    if unexpected:
        raise ConfigError(
            f"unexpected argument {unexpected[0]!r}: options begin with --, values with spaces need quotes, and on/off "
            f"options take no value; see {prog} --help"
        )
    for name in types:
        value = getattr(config, name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, float) and not math.isfinite(item):
                raise ConfigError(f"--{name.replace('_', '-')} {item}: must be a finite number")
    config.check_given({*values, *given})
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


def _take_recipe(argv: list[str]) -> tuple[str | None, list[str]]:
    """The value of `--config`, and the arguments without it."""
    source, rest, tokens = None, [], iter(argv)
    for token in tokens:
        flag, equals, value = token.partition("=")
        if flag != "--config":
            rest.append(token)
            continue
        if source is not None:
            raise ConfigError("--config was given twice: name one recipe, then override its values by options")
        source = value if equals else next(tokens, "")
        if not source or source.startswith("--"):
            raise ConfigError("--config needs a value: the name of a recipe or a .toml file")
    return source, rest


def _find_recipe(source: str, cls: type) -> Path:
    if source.endswith(".toml") or os.sep in source:
        return Path(source)
    path = RECIPES / f"{source}.toml"
    if not path.is_file():
        names = recipe_names(cls)
        raise ConfigError(
            f"--config {source}: no such recipe{nearest(source, names)}; known: {', '.join(names) or 'none'}, or the path of a .toml file"
        )
    return path


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def _types(cls: type) -> dict[str, Any]:
    """The fields with their types."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def _read_recipe(path: Path, cls: type[Options]) -> dict[str, Any]:
    values, types = {}, _types(cls)
    for key, value in _read_toml(path).items():
        gone = key if key in cls.REMOVED else f"{key} {value}"
        if gone in cls.REMOVED:
            raise ConfigError(f"{path}: the option {gone} is gone: {cls.REMOVED[gone]}")
        if key not in types:
            raise ConfigError(f"{path}: unknown option {key!r}{nearest(key, types)}")
        try:
            values[key] = _convert(types[key], value)
        except ValueError:
            shown = str(value).lower() if isinstance(value, bool) else repr(value)
            raise ConfigError(f"{path}: {key} = {shown}: must be {_wanted(types[key])}") from None
    return values


def _convert(annotation: Any, value: Any) -> Any:
    """A TOML value as the annotation has it; no guessing: `"5"` is no number, `1` is not true, `1.0` is not whole."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        for choice in inner:
            try:
                return _convert(choice, value)
            except ValueError:
                continue
    elif origin is tuple and isinstance(value, list):
        return tuple(_convert(inner[0], item) for item in value)
    elif origin is Literal and any(value == choice and type(value) is type(choice) for choice in inner):
        return value
    elif annotation is float and type(value) in (int, float):
        return float(value)
    elif annotation is Path and isinstance(value, str) and "\0" not in value:
        return Path(value)
    elif annotation in (bool, int, str) and type(value) is annotation and "\0" not in str(value):  # which would end a path
        return value
    raise ValueError


def _wanted(annotation: Any) -> str:
    """The values an annotation takes, in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(_wanted(choice) for choice in inner)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple:
        return f"a list, each item {_wanted(inner[0])}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path", NoneType: "None"}[annotation]


def _join_repeated(argv: list[str], names: set[str]) -> list[str]:
    """The arguments with all values of each of these options after one flag, at the end."""
    rest: list[str] = []
    joined: dict[str, list[str]] = {}
    values = rest
    for token in argv:
        flag, equals, value = token.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not token.startswith("--"):
            values.append(token)
        elif name in names:
            values = joined.setdefault(f"--{name.replace('_', '-')}", [])
            values += [value] if equals else []
        else:
            values = rest
            values.append(token)
    return rest + [token for flag, values in joined.items() for token in (flag, *values)]


def _options_given(argv: list[str], cls: type[Options], prog: str) -> dict[str, list[str]]:
    """Options on the command line with the values that follow them; unknown ones are refused by name.

    Of an option given twice the last one counts, as everywhere; but a list would lose its first values unnoticed.
    """
    types = _types(cls)
    switches = [f"no_{name}" for name, annotation in types.items() if annotation is bool]
    known = [*types, *switches, "help", "tyro_print_completion", "tyro_write_completion"]
    given: dict[str, list[str]] = {}
    values: list[str] = []
    for token in argv:
        if not token.startswith("--"):
            values.append(token)
            continue
        flag, equals, value = token.partition("=")
        name = flag[2:].replace("-", "_")
        if name in cls.REMOVED:
            raise ConfigError(f"{flag} is gone: {cls.REMOVED[name]}")
        if name not in known:
            near = nearest(f"--{name.replace('_', '-')}", [f"--{name.replace('_', '-')}" for name in known])
            raise ConfigError(f"unknown option {flag}{near}; see {prog} --help")
        if name in given and get_origin(types.get(name)) is tuple:
            raise ConfigError(f"{flag} is given twice: give all its values after one {flag}")
        values = given[name] = [value] if equals else []
    for name, words in given.items():
        if words and (gone := f"{name} {words[0]}") in cls.REMOVED:
            raise ConfigError(f"--{name.replace('_', '-')} {words[0]} is gone: {cls.REMOVED[gone]}")
    return given


def _unchecked(cls: type[Config], values: dict[str, Any]) -> Config:
    """An instance made without `__post_init__`: the defaults under the recipe's values, for tyro to start from."""
    from tyro import MISSING as REQUIRED

    start = object.__new__(cls)
    for field in fields(cls):  # type: ignore[arg-type]
        default = field.default if field.default_factory is MISSING else field.default_factory()
        object.__setattr__(start, field.name, values.get(field.name, REQUIRED if default is MISSING else default))
    return start


def _refusal(printed: str, given: dict[str, list[str]], types: dict[str, Any], prog: str) -> str:
    """One line in place of the box that tyro printed: the option, the value given, and what it takes."""
    for flag in re.findall(r"--[a-z][\w-]*", printed):
        name = flag[2:].replace("-", "_")
        if name not in given or name not in types:
            continue
        if not given[name]:
            return f"{flag} needs a value: {_wanted(types[name])}"
        near = nearest(given[name][0], map(str, get_args(types[name]))) if get_origin(types[name]) is Literal else ""
        return f"{flag} {shlex.join(given[name])}: must be {_wanted(types[name])}{near}"
    rows = [row.strip("\u2502 ") for row in re.sub(r"\x1b\[[0-9;]*m", "", printed).splitlines()[1:]]
    rule = next((index for index, row in enumerate(rows) if row.startswith("\u2500")), len(rows))
    return f"{' '.join(rows[:rule])}; see {prog} --help"
