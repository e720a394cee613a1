"""The shape of the house, in figures that only go down: lines, files, modules a room, circles of imports, module names used twice."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("portraitkit", "dpg", "preference_data", "reward_models", "policies", "benchmarks")
MOST_LINES = 36_858
MOST_FILES = 248
MOST_MODULES = 15
"""In a room, its `__init__` not counted."""
PLUG_INS = {"benchmarks/metrics", "policies/retoucher/backbones", "preference_data/generators", "preference_data/sources"}
"""Rooms that grow by one file for each metric, backbone, generator or data set."""
TWINS = {"reward_models/reward.py"}
"""Module names that a package uses twice. `policies.retoucher` and `policies.vlm` count as packages of their own."""

FILES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def package_of(path: Path) -> str:
    return "/".join(path.parts[:2]) if path.parts[0] == "policies" else path.parts[0]


def imports_of(path: Path) -> set[str]:
    """Modules of ours that a file imports, at its top or inside a function, annotations for type checkers left out."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    unreal = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in unreal:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def module_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules of which each reaches each other one (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return groups


def test_lines_and_files_do_not_grow():
    lines = sum(len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in FILES)
    assert lines <= MOST_LINES, f"{lines} lines of product code; delete some, or merge what is there twice"
    assert len(FILES) <= MOST_FILES, f"{len(FILES)} files of product code; merge those that one file alone imports"


def test_no_room_is_full():
    rooms = Counter(path.parent.as_posix() for path in FILES if path.name != "__init__.py")
    full = {room: count for room, count in rooms.items() if room not in PLUG_INS and count > MOST_MODULES}
    assert not full, f"rooms with more than {MOST_MODULES} modules: {full}"


def test_a_package_has_no_two_modules_of_one_name():
    names = Counter((package_of(path), path.name) for path in FILES if path.name != "__init__.py")
    twins = {f"{package}/{name}" for (package, name), count in names.items() if count > 1}
    assert twins <= TWINS, f"two modules of one name: {sorted(twins - TWINS)}"


def test_nothing_imports_in_a_circle():
    modules = {module_of(path): path for path in FILES}
    graph = {name: {other for other in imports_of(path) if other in modules and other != name} for name, path in modules.items()}
    found = circles(graph)
    assert not found, f"modules that import each other: {found}"


@pytest.mark.parametrize("package", ["dpg", "portraitkit"])
def test_the_ground_floor_imports_no_other(package: str):
    for path in FILES:
        if path.parts[0] == package:
            above = {name for name in imports_of(path) if name.split(".")[0] in PACKAGES and name.split(".")[0] != package}
            assert not above or (package == "dpg" and all(name.startswith("portraitkit") for name in above)), f"{path}: {above}"
