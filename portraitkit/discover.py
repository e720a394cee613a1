"""Tasks, backbones and metrics by name: `my_file.py:NAME` for a user's own, `package.module:NAME` if installed."""

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from portraitkit.errors import ConfigError, nearest

Kind = TypeVar("Kind")


def load_object(where: str) -> Any:
    """Load the object called NAME from `path/my_file.py:NAME` or `package.module:NAME`. Built-ins come by the same road.

    A file is executed once per process and contents, however often it is named; it is trusted code of the user's own.

    Raises:
        ConfigError: no colon, no such file or module, or no such name in it (with the nearest one). An error inside the
            file or module is its author's bug and keeps its traceback.
    """
    source, _, name = where.rpartition(":")
    is_file = source.endswith(".py")
    if not name or not (is_file or all(part.isidentifier() for part in source.split("."))):
        raise ConfigError(f"{where!r}: must be my_file.py:NAME or package.module:NAME")
    module = _load_file(Path(source)) if is_file else _load_module(source)
    if not hasattr(module, name):
        public = [known for known in vars(module) if not known.startswith("_")]
        raise ConfigError(f"{where}: {source} has no {name!r}{nearest(name, public)}")
    return getattr(module, name)


def load_known(name: str, known: Mapping[str, str], kind: type[Kind], option: str) -> Kind:
    """An object of the class `kind` by a short name in `known`, or as `load_object` takes it; `option`, as --task, is for messages.

    ConfigError: the name is unknown, or stands for something else.
    """
    if ":" not in name and name not in known:
        raise ConfigError(f"{option} {name}: unknown{nearest(name, known)}; use {', '.join(known)} or my_file.py:{kind.__name__.upper()}")
    found = load_object(known.get(name, name))
    if not isinstance(found, kind):
        raise ConfigError(f"{option} {name}: that is a {type(found).__name__}, not a {kind.__module__}.{kind.__name__}")
    return found


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        near = nearest(path.name, [other.name for other in path.parent.glob("*.py")])
        raise ConfigError(f"{path}: no such file, looked in {path.parent.resolve()}{near}")
    text = path.read_bytes()
    digest = hashlib.sha256(bytes(path.resolve()) + text).hexdigest()[:12]
    title = f"{path.stem}_{digest}"  # unique, so that a user's metric.py never stands in for another module
    if title in sys.modules:
        return sys.modules[title]
    spec = importlib.util.spec_from_file_location(title, path.resolve())
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[title] = module  # dataclasses and pickle look their module up by name
    try:
        exec(compile(text, path.resolve(), "exec"), vars(module))  # Python's kept bytecode is an older file's, changed within a second
    except BaseException:
        del sys.modules[title]
        raise
    return module


def _load_module(source: str) -> ModuleType:
    try:
        return importlib.import_module(source)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{source}.".startswith(f"{error.name}."):
            raise  # the module exists; something that it imports does not
        parent, _, last = source.rpartition(".")
        folders = getattr(sys.modules[parent], "__path__", []) if parent and error.name == source else []
        known = [module.name for module in pkgutil.iter_modules(folders)] if folders else []
        raise ConfigError(f"{source}: no such module{nearest(last, known)}; a file is named as my_file.py:NAME") from error
