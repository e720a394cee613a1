"""What the processor is good at: bfloat16 only where it multiplies it natively, and freed memory kept for the next layer."""

import ctypes
import os
import sys
import time
import warnings
from contextlib import ExitStack
from functools import lru_cache

import torch

from portraitkit.errors import ConfigError

BF16_VARIABLE = "PORTRAITKIT_CPU_BF16"  # Environment variable that overrules the measurement: on, off or auto

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # Names of glibc's malloc.h
LARGEST = 2**31 - 1
OLD_LARGEST = 2**25  # The most that older versions take for blocks from the kernel
SPARE = 2**28


def keep_freed_memory() -> None:
    """Have freed memory kept for the next layer, where it would go back to the kernel and be asked for anew, page by page.

    A GRPO update of the embedded model takes a fifth less time, decoding 96 retouches of 128 px 44 % less. A process then holds what it
    needed most; elsewhere than with glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is None or not (mallopt(MMAP_THRESHOLD, LARGEST) or mallopt(MMAP_THRESHOLD, OLD_LARGEST)):
        return
    mallopt(TRIM_THRESHOLD, LARGEST)
    mallopt(TOP_PAD, SPARE)


def cpu_bf16() -> bool:
    """Whether this CPU computes in bfloat16 where a caller would like it to: only if it multiplies bfloat16 faster than float32.

    Processors with AVX512_BF16 or AMX do, about twice as fast; on others torch emulates it, 50 times slower (1.0 GFLOP/s against 59 on
    AVX2). The variable PORTRAITKIT_CPU_BF16 (on, off) overrules the measurement; ConfigError: it holds anything else.
    """
    asked = os.environ.get(BF16_VARIABLE, "auto")
    if asked not in ("auto", "on", "off"):
        raise ConfigError(f"{BF16_VARIABLE}={asked}: must be auto, on or off")
    return asked == "on" if asked != "auto" else bf16_speed() > 1


@lru_cache
def bf16_speed() -> float:
    """How many times as fast as in float32 this CPU multiplies matrices in bfloat16; measured once a process, in under 50 ms."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(256, 256, dtype=dtype)
        seconds[dtype] = min([_seconds(matrix) for _ in range(4)][1:])  # the kernel is made at the first
    return seconds[torch.float32] / seconds[torch.bfloat16]


def describe_cpu_bf16() -> str:
    """One line for a run that would like bfloat16 on the CPU: what it gets, and why."""
    used = "bfloat16" if cpu_bf16() else "float32"
    if os.environ.get(BF16_VARIABLE, "auto") != "auto":
        return f"CPU: {used}, as {BF16_VARIABLE} says"
    return f"CPU: {used}; it multiplies bfloat16 at {bf16_speed():.2g} times float32's speed"


def bf16_autocast(enabled: bool = True) -> ExitStack:
    """Autocast to bfloat16, on the CPU only where it helps (`cpu_bf16`), or nothing if it is not `enabled`."""
    stack = ExitStack()
    stack.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")  # RMS norms keep their float32 weights
    if enabled and cpu_bf16():
        stack.enter_context(torch.autocast("cpu", torch.bfloat16))
    if enabled and torch.cuda.is_available():
        stack.enter_context(torch.autocast("cuda", torch.bfloat16))
    return stack


def _seconds(matrix: torch.Tensor) -> float:
    started = time.perf_counter()
    torch.mm(matrix, matrix)
    return time.perf_counter() - started
