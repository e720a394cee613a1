"""Every vendored parameter file is named in NOTICE with its sha256."""

import hashlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/weights").iterdir()), ids=lambda path: path.name)
def test_notice_has_the_files_hash(path):
    entry = re.search(rf"^{path.name}$(.*?)^$", (ROOT / "NOTICE").read_text(), re.S | re.M)
    assert entry is not None and hashlib.sha256(path.read_bytes()).hexdigest() in entry[1]
