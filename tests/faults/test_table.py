"""docs/reliability.md names tests that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_of_the_tables_exists():
    page = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if re.match(r"\| \d+ ", line)]
    assert len(rows) == 35 + 10 + 14 + 5, "faults, values, reports, newcomers"
    for row in rows:
        for file, names in re.findall(r"`(\S+\.py)`: ([\w, ]+)", row):
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert all(f"def test_{name}(" in text for name in names.strip().split(", ")), f"{file}: {names}"
