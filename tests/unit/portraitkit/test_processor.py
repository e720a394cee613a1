import os
import platform
import subprocess
import sys

import pytest
import torch

from portraitkit import processor
from portraitkit.errors import ConfigError

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


@pytest.fixture
def measured(monkeypatch):
    """Set what the measurement says."""

    def set_speed(ratio):
        monkeypatch.setattr(processor, "bf16_speed", lambda: ratio)

    return set_speed


@pytest.mark.parametrize(("ratio", "dtype"), [(2.0, torch.bfloat16), (0.02, torch.float32)])
def test_bfloat16_is_used_where_the_processor_is_faster_at_it(measured, monkeypatch, ratio, dtype):
    monkeypatch.delenv("PORTRAITKIT_CPU_BF16", raising=False)
    measured(ratio)
    with processor.bf16_autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert str(dtype).removeprefix("torch.") in processor.describe_cpu_bf16()
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(("word", "dtype"), [("on", torch.bfloat16), ("off", torch.float32)])
def test_the_variable_overrules_the_measurement(measured, monkeypatch, word, dtype):
    monkeypatch.setenv("PORTRAITKIT_CPU_BF16", word)
    for ratio in (2.0, 0.02):
        measured(ratio)
        with processor.bf16_autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert "PORTRAITKIT_CPU_BF16" in processor.describe_cpu_bf16()
    with processor.bf16_autocast(enabled=False):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_another_word_is_refused(monkeypatch):
    monkeypatch.setenv("PORTRAITKIT_CPU_BF16", "maybe")
    with pytest.raises(ConfigError, match="PORTRAITKIT_CPU_BF16=maybe: must be auto, on or off"):
        processor.cpu_bf16()


CAPPED = "from portraitkit.processor import bf16_speed, cpu_bf16; print(bf16_speed(), cpu_bf16())"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the variable caps x86 instructions")
def test_a_processor_without_bfloat16_is_recognised():
    environment = {
        **os.environ,
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "PORTRAITKIT_CPU_BF16": "auto",
    }  # no bfloat16 instructions, as on most laptops
    done = subprocess.run([sys.executable, "-c", CAPPED], capture_output=True, text=True, check=True, env=environment)
    speed, used = done.stdout.split()
    assert float(speed) < 0.5 and used == "False"
