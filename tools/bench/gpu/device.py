"""What a device is, what it could compute, and how much memory a computation held on it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from portraitkit.errors import ConfigError
from portraitkit.memory.trace import LiveBytes

# Dense bfloat16 with float32 sums, TFLOP/s, without sparsity, from NVIDIA's data sheets: H200 and H200 NVL (2024), H100 (SXM and PCIe 2022,
# NVL 2024), HGX B200 (2024), A100 and A10 (2021), A40 (2022), L40S and L4 (2023), and the papers on Ada (RTX 4090) and GA102 (RTX 3090,
# A6000). Where a sheet names the figure with sparsity alone, half of it. The first line all of whose words are in the device's name counts.
PEAKS = (
    ("H200 NVL", 835.5),
    ("H200", 989.5),
    ("H100 NVL", 835.5),
    ("H100 PCIe", 756.0),
    ("H100", 989.5),
    ("B200", 2250.0),
    ("A100", 312.0),
    ("A40", 149.7),
    ("A10", 125.0),
    ("L40S", 362.0),
    ("L4", 121.0),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
    ("RTX A6000", 154.8),
)


@dataclass
class Peak:
    """Most bytes at once while something ran."""

    tensors: int = 0
    """Of tensors: as the CUDA allocator gave them out, on the CPU as a counter saw them."""
    reserved: int | None = None
    """Of what the CUDA allocator held, its fragments included; None on the CPU."""


def device_name(device: str) -> str:
    """As its maker calls it, or CPU."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "CPU"


def peak_flops(name: str) -> float | None:
    """FLOP/s that a device could do in bfloat16; None where the table does not know it.

    Args:
        name: from `device_name`.
    """
    words = set(name.replace("-", " ").split())
    return next((tera * 1e12 for known, tera in PEAKS if set(known.split()) <= words), None)


def check_device(device: str, *, tiny: bool) -> None:
    """Refuse to start without the device.

    Raises:
        ConfigError: there is no CUDA device, or more than one is visible.
    """
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        instead = "leave --device out" if tiny else "use --tiny for the same code with tiny models on the CPU"
        raise ConfigError(f"--device {device}: no CUDA device here; {instead}")
    if torch.cuda.device_count() > 1:
        raise ConfigError(f"{torch.cuda.device_count()} CUDA devices are visible, and one is measured: start with CUDA_VISIBLE_DEVICES=0")


@contextmanager
def measured_memory(device: str, held: Iterable[Tensor]) -> Iterator[Peak]:
    """The peak of what runs inside, known when it has ended.

    On the CPU all operations pass through a counter, the planner's own, which takes time.

    Args:
        device: that it runs on.
        held: tensors that are there from the start, for the counter.
    """
    peak = Peak()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.tensors, peak.reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        return
    with LiveBytes(held, ("cpu",)) as live:
        yield peak
    peak.tensors = live.peak
