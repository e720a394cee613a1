"""Whoever copies the folder into another trainer needs torch, diffusers and jaxtyping, and nothing of this repository."""

import ast
import sys
from pathlib import Path

import dpg

ALLOWED = {"dpg", "torch", "diffusers", "jaxtyping"}


def test_the_folder_can_be_copied_out() -> None:
    files = list(Path(dpg.__file__).parent.glob("**/*.py"))
    assert len(files) >= 6
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not isinstance(node, ast.ImportFrom) or node.level == 0
            assert all(name.partition(".")[0] in ALLOWED | sys.stdlib_module_names for name in names), (file.name, names)
