"""How the C library hands out memory: training on a CPU allocates and frees the same large blocks in every layer."""

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
"""Names of glibc's malloc.h."""
LARGEST = 2**31 - 1
OLD_LARGEST = 2**25
"""The most that older versions take for blocks from the kernel."""
SPARE = 2**28


def keep_freed_memory() -> None:
    """Have freed memory kept for the next layer, where it would go back to the kernel and be asked for anew, page by page.

    A GRPO update of the embedded model takes a fifth less time. A process then holds what it needed most; elsewhere than with glibc
    nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is None or not (mallopt(MMAP_THRESHOLD, LARGEST) or mallopt(MMAP_THRESHOLD, OLD_LARGEST)):
        return
    mallopt(TRIM_THRESHOLD, LARGEST)
    mallopt(TOP_PAD, SPARE)
