import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from portraitkit.processor import keep_freed_memory
{keep}
def faults():
    for _ in range(8):
        np.ones(2**23)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_blocks_of_one_size_are_asked_for_once():
    plain, kept = (
        int(subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True, check=True).stdout)
        for keep in ("", "keep_freed_memory()")
    )
    assert kept < plain / 10
