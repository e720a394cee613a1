"""The runtime type checks of the tests, set up in conftest.py: beartype on the functions of modules that have annotations of arrays.

Each call of a function whose annotations name an array has sizes of its own, as with `jaxtyping.jaxtyped`, which would bind it to its
signature twice and look at every argument twice; other functions are looked at once. Functions inside functions, which would be
compiled anew whenever they are made, are left alone.
"""

import ast
import functools
import sys
from collections.abc import Iterable
from dataclasses import is_dataclass
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import decode_source
from types import CodeType
from typing import Any, Self, get_args

from beartype import BeartypeConf, FrozenDict, beartype
from jaxtyping import AbstractArray, TypeCheckError, jaxtyped

# `Self` is not checked, because beartype cannot know the class of a method that it meets alone; an int is taken where a float is asked for.
CONF = BeartypeConf(hint_overrides=FrozenDict({Self: Any}), is_pep484_tower=True, violation_type=TypeCheckError)


def names_an_array(hint: object) -> bool:
    parts = hint if isinstance(hint, list) else get_args(hint)
    return isinstance(hint, type) and not parts and issubclass(hint, AbstractArray) or any(map(names_an_array, parts))


def check(made: Any) -> Any:
    """A function that checks what it is given and what it returns, in place of this one; a data class does when it is made."""
    if isinstance(made, type):
        if is_dataclass(made) and "__init__" in vars(made):
            made.__init__ = check(made.__init__)
        return made
    hints = made.__annotations__
    made.__annotations__ = {name: Any if isinstance(hint, str) else hint for name, hint in hints.items()}  # of names that come later
    checked = beartype(made, conf=CONF)
    made.__annotations__ = hints
    if not any(map(names_an_array, hints.values())):
        return checked

    @functools.wraps(made)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        with jaxtyped("context"):
            return checked(*args, **kwargs)

    return call


class _Marked(ast.NodeTransformer):
    """Puts `check` on functions, next to them and so beneath their decorators, and over those of classes."""

    def _mark(self, node: Any, place: int) -> Any:
        node.decorator_list.insert(place, ast.copy_location(ast.Name("__check__", ast.Load()), node))
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        return self._mark(node, len(node.decorator_list))

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> Any:
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        self.generic_visit(node)
        return self._mark(node, 0)


class _Loader(SourceFileLoader):
    """Its bytecode has a name of its own, so that what users run stays as it is, and what these modules import."""

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:
        return compile(_Marked().visit(ast.parse(decode_source(data), path)), path, "exec", dont_inherit=True, optimize=_optimize)

    def exec_module(self, module: Any) -> None:
        module.__check__ = check
        super().exec_module(module)

    def get_data(self, path: str) -> bytes:
        return super().get_data(_own(path))

    def set_data(self, path: str, data: Any, **more: Any) -> None:
        super().set_data(_own(path), data, **more)


def _own(path: str) -> str:
    return path.removesuffix(".pyc") + ".checked.pyc" if path.endswith(".pyc") else path


def install(modules: Iterable[str]) -> None:
    """Have these modules checked when they are imported."""
    chosen = frozenset(modules)

    class Finder(PathFinder):
        @classmethod
        def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
            spec = super().find_spec(fullname, path, target) if fullname in chosen else None
            if spec is not None and spec.origin is not None:
                spec.loader = _Loader(fullname, spec.origin)
            return spec

    sys.meta_path.insert(0, Finder)
