"""What commands have written."""

import json
from pathlib import Path
from typing import Any


def lines(path: Path) -> list[Any]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]
