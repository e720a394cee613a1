"""How the C library hands out memory: training on a CPU allocates and frees the same large blocks in every layer."""

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
"""Names of glibc's malloc.h."""
LARGEST = 2**31 - 1
SPARE = 2**28


def keep_freed_memory() -> None:
    """Have freed memory kept for the next layer, where it would go back to the kernel and be asked for anew, page by page.

    A GRPO update of the embedded model takes a fifth less time. A process then holds what it needed most; elsewhere than with glibc
    nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        for name, value in ((MMAP_THRESHOLD, LARGEST), (TRIM_THRESHOLD, LARGEST), (TOP_PAD, SPARE)):
            mallopt(name, value)
