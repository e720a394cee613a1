"""docs/papers.md points at code that exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
REFERENCE = re.compile(r"`([\w/]+\.py):(\w+)`")


def test_every_reference_of_the_paper_map_resolves() -> None:
    references = set(REFERENCE.findall((ROOT / "docs" / "papers.md").read_text(encoding="utf-8")))
    assert len(references) > 15
    missing = []
    for path, name in sorted(references):
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8")) if (ROOT / path).is_file() else ast.Module([], [])
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        missing += [] if name in names else [f"{path}:{name}"]
    assert not missing
