"""How options are typed, and what `--help` prints of them: in groups, one for each class that a configuration is made of."""

import ast
import inspect
import os
import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

WIDEST, COLUMN = 110, 30
WORDS = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Repeatable:
    """Mark of a list whose option may also be given again for every value: `--method a --method b` is `--method a b`."""

    metavar: str = ""  # what help shows of its values


@dataclass(frozen=True)
class Positional:
    """Mark of a field that is typed without its name, in the fields' order."""

    metavar: str = ""


@cache
def marks_of(cls: type) -> dict[str, tuple[Any, ...]]:
    """What stands beside the types of the fields."""
    return {name: get_args(hint)[1:] for name, hint in get_type_hints(cls, include_extras=True).items() if get_origin(hint) is Annotated}


def positionals(cls: type) -> list[str]:
    return [name for name, marks in marks_of(cls).items() if any(isinstance(mark, Positional) for mark in marks)]


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def groups(cls: type) -> dict[str, list[str]]:
    """Title -> names of the options of one class that a configuration is made of, in the order in which it names its bases.

    An option that a class gives another default stays in the group of the base that has it first.
    """
    own = [list(vars(kind).get("__annotations__", {})) for kind in cls.__mro__]
    home = {field.name: max(place for place, names in enumerate(own) if field.name in names) for field in fields(cls)}
    found: dict[str, list[str]] = {}
    for place, kind in enumerate(cls.__mro__):
        if names := [name for name in own[place] if home.get(name) == place]:
            title = "Options" if kind is cls else inspect.cleandoc(kind.__doc__ or "").split("\n")[0].rstrip(".")
            found.setdefault(title, []).extend(names)
    return found


def format_help(cls: type, values: Mapping[str, Any], *, prog: str, example: str, recipes: list[str]) -> str:
    """The whole text; `values` are those of the recipe, which count where an option is not given, `recipes` those that fit."""
    hints, docs = get_type_hints(cls, include_extras=True), field_docs(cls)
    start = [f"--config NAME|FILE.toml starts from a recipe; options override it. Recipes: {', '.join(recipes)}."] if recipes else []
    lines = [f"usage: {' '.join([prog, *(_words(hints[name]) for name in positionals(cls)), '[OPTIONS]'])}"]
    for text in [*inspect.cleandoc(cls.__doc__ or "").split("\n\n"), *start, f"Example: {prog} {example}".rstrip()]:
        lines += ["", *_wrap(text)]
    defaults = {field.name: field.default for field in fields(cls)} | dict(values)
    for title, names in groups(cls).items():
        lines += ["", f"{title}:"]
        for name in names:
            shown = _shown(defaults[name])
            lines += _entry(option_words(cls, name), docs.get(name, "") + (f" (default: {shown})" if shown else ""))
    return "\n".join([*lines, *_entry("-h, --help", "Show this and exit.")])


def option_words(cls: type, name: str) -> str:
    """A field as it is typed: PHOTO, --count INT, --dpg, --no-dpg."""
    flag, words = flag_of(name), _words(get_type_hints(cls, include_extras=True)[name])
    return words if name in positionals(cls) else f"{flag} {words}" if words else f"{flag}, --no-{flag[2:]}"


def field_docs(cls: type) -> dict[str, str]:
    """Name -> docstring under the field, of the class and its bases."""
    docs: dict[str, str] = {}
    for kind in reversed(cls.__mro__[:-1]):
        tree = ast.parse(Path(inspect.getfile(kind)).read_text(encoding="utf-8"))
        body = next(node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == kind.__name__)
        for field, below in zip(body, body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                docs[ast.unparse(field.target)] = " ".join(str(below.value.value).split())
    return docs


def _words(hint: Any) -> str:
    """What is typed behind an option, such as INT, {none,nf4} or TEXT ...; nothing behind a switch."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return next((mark.metavar for mark in inner[1:] if getattr(mark, "metavar", None)), None) or _words(inner[0])
    if origin in (Union, UnionType):
        return " or ".join(_words(choice) for choice in inner if choice is not NoneType)
    if origin is tuple:
        return f"{_words(inner[0])} ..."
    if origin is Literal:
        return f"{{{','.join(map(str, inner))}}}"
    return WORDS.get(hint, "")


def _shown(value: Any) -> str:
    """A default as help shows it; nothing where there is none, or where it is empty."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return str(value).strip() if isinstance(value, int | float | str | os.PathLike) else ""


def _entry(option: str, text: str) -> list[str]:
    """An option with its help beside it, or below where it is long."""
    lines = [" " * COLUMN + line for line in _wrap(text, COLUMN)]
    return [f"  {option:<{COLUMN - 2}}{lines[0].strip()}", *lines[1:]] if len(option) < COLUMN - 3 else [f"  {option}", *lines]


def _wrap(text: str, indent: int = 0) -> list[str]:
    width = min(WIDEST, shutil.get_terminal_size().columns) - indent
    return textwrap.wrap(text, max(width, 20), break_long_words=False, break_on_hyphens=False)
