"""The arithmetic of a training run's memory on one device, and the search for settings that make it fit.

What a model allocates is not guessed: `portraitkit.memory.trace` runs its own code on the meta device. This file adds what stands beside
it (gradients, optimiser states, shards of them), and says what to change when the sum is too large.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import ceil
from typing import Any, Literal, TypeVar, cast

from portraitkit.errors import ConfigError

GIB = 2**30
CONTEXT = int(0.6 * GIB)  # Assumed of a GPU: CUDA's context and cuBLAS's workspace
FRAGMENTS = 0.05  # Assumed of a GPU: what the allocator holds in pieces too small to use, as a share of all else
NF4 = 0.5 + 4 / 64  # Bytes of a value in NF4: 4 bits, and a float32 scale for each 64 values (bitsandbytes without double quantisation)
DEVICES = (24, 48, 80, 141)  # GiB of GPUs that are sold, of each of which a little less is free
EIGHT_BIT_FROM, EIGHT_BIT_BLOCK = 4096, 256
"""bitsandbytes keeps the states of smaller tensors in float32; larger ones have a float32 scale for each block."""
Config = TypeVar("Config")


@dataclass(frozen=True)
class Shards:
    """How a run is split over devices."""

    kind: Literal["none", "zero2", "zero3", "fsdp2"] = "none"
    """zero2 splits gradients and optimiser states; zero3 (DeepSpeed) and fsdp2 (the retoucher's base) split the weights, too."""
    devices: int = 1

    @property
    def of_state(self) -> int:
        """Shards of gradients and optimiser states."""
        return 1 if self.kind == "none" else self.devices

    @property
    def of_weights(self) -> int:
        """Shards of the weights."""
        return self.devices if self.kind in ("zero3", "fsdp2") else 1


@dataclass(frozen=True)
class Trained:
    """Sizes of the trained tensors: (values, bytes a value)."""

    tensors: tuple[tuple[int, int], ...]

    @property
    def values(self) -> int:
        """How many values are trained."""
        return sum(values for values, _ in self.tensors)

    @property
    def size(self) -> int:
        """Bytes of the tensors, and as many again of their gradients."""
        return sum(values * width for values, width in self.tensors)

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor."""
        return max((values * width for values, width in self.tensors), default=0)

    def states(self, optimizer: str, shards: Shards) -> int:
        """Bytes of the states of adamw or adamw_8bit on one device.

        ZeRO keeps both moments, and a copy of bf16 weights, in float32; FSDP2 and a plain run keep moments in the weights' type.
        """
        if shards.kind in ("zero2", "zero3"):
            return sum(values * (8 + 4 * (width < 4)) for values, width in self.tensors) // shards.devices
        if optimizer == "adamw_8bit":
            eight_bit = (2 * (n + 4 * ceil(n / EIGHT_BIT_BLOCK)) if n >= EIGHT_BIT_FROM else 8 * n for n, _ in self.tensors)
            return sum(eight_bit) // shards.of_state
        return 2 * self.size // shards.of_state


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    parameters: int  # Values of the whole model
    trained: int  # Values that are trained: some of the parameters, or a LoRA beside them
    held: Mapping[str, int]  # What stays all the time, by name
    phases: Mapping[str, int]  # What comes on top in each phase of a training step; one runs at a time
    gpu: bool = True  # Whether the device has a context and an allocator of its own
    notes: Mapping[str, str] = field(default_factory=dict)  # Further lines of the table

    @property
    def tensors(self) -> int:
        """Most bytes of tensors at once."""
        return sum(self.held.values()) + max(self.phases.values(), default=0)

    @property
    def assumed(self) -> int:
        """What a GPU takes beside tensors."""
        return CONTEXT + int(FRAGMENTS * self.tensors) if self.gpu else 0

    @property
    def peak(self) -> int:
        """The estimate."""
        return self.tensors + self.assumed

    @property
    def at_peak(self) -> str:
        """The phase that sets the peak."""
        return max(self.phases, key=lambda name: self.phases[name]) if self.phases else "at rest"

    def lines(self) -> list[tuple[str, str]]:
        """(name, value) lines of the plan."""
        return [
            ("parameters", f"{self.parameters:,}, trained {self.trained:,}"),
            *((name, human(size)) for name, size in self.held.items() if size),
            *((f"while: {name}", f"+ {human(size)}") for name, size in self.phases.items()),
            *self.notes.items(),
            *([("context, fragments (assumed)", human(self.assumed))] if self.gpu else []),
            ("peak, estimated", f"{human(self.peak)} on each device, while: {self.at_peak}"),
        ]


def print_table(command: str, lines: Iterable[tuple[str, str]]) -> None:
    """Print the (name, value) lines of a plan."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "planned", title=f"{command}, not started", title_justify="left")
    for line in lines:
        table.add_row(*line)
    Console().print(table)


Change = Callable[[Config], Config | None]  # From a run to one that needs less memory; None where nothing would change


def set_to(config: Config, **values: Any) -> Config | None:
    """The configuration with other options; None where they are so already, or where the configuration refuses them."""
    if all(getattr(config, name) == value for name, value in values.items()):
        return None
    try:
        return replace(cast(Any, config), **values)
    except ConfigError:
        return None


def check_fits(
    config: Config, memory: Memory, limit: int | None, plan: Callable[[Config], Memory], *rounds: Sequence[Change[Config]]
) -> None:
    """Refuse a run that cannot fit, with what makes it fit: the first change that does so alone, else the fewest together.

    Without a `limit` (bytes of the device) a run on a GPU is refused that none of `DEVICES` holds, and else is told which do. Each of the
    `rounds` has changes, the least painful first; those of a further round (more devices) count only where all before them do not help.

    Raises:
        ConfigError: it cannot fit; what would make it fit is named, or that nothing here does.
    """
    if limit is None and memory.gpu:
        if memory.peak <= DEVICES[-1] * GIB:
            from rich.console import Console

            Console().print(where_it_fits(config, memory, plan, rounds[0] if rounds else ()), highlight=False)
            return
        limit = DEVICES[-1] * GIB
    if limit is None or memory.peak <= limit:
        return
    asked = getattr(config, "device_memory", None)
    named = "" if asked is None else f"--device-memory {asked:g}: "
    problem = f"{named}the run needs {human(memory.peak)} on a device (while: {memory.at_peak}), which has {human(limit)}"
    smallest, candidates = memory.peak, []
    for changes in rounds:
        candidates = [*(change for change in changes if change(config) is not None), *candidates]
        chosen, peak = _choose(config, candidates, limit, plan)
        if peak <= limit:
            raise ConfigError(f"{problem}; {typed(config, _with(config, chosen))} makes it fit: {human(peak)}")
        smallest = min(smallest, peak)
    raise ConfigError(f"{problem}; no change that is known here makes it fit: with all of them it needs {human(smallest)}")


def where_it_fits(config: Config, memory: Memory, plan: Callable[[Config], Memory], changes: Sequence[Change[Config]]) -> str:
    """The smallest of `DEVICES` that a run fits as it is, and the smallest with options, as a line; the run fits the largest."""
    smallest = next(size for size in DEVICES if memory.peak <= size * GIB)
    line = f"no GPU here; of {', '.join(map(str, DEVICES))} GiB the smallest that it fits: {smallest} GiB as it is"
    candidates = [change for change in changes if change(config) is not None]
    least = plan(_with(config, candidates)).peak
    for size in DEVICES[: DEVICES.index(smallest)]:
        if least <= size * GIB:
            chosen, peak = _choose(config, candidates, size * GIB, plan)
            return f"{line}, {size} GiB with {typed(config, _with(config, chosen))} ({human(peak)})"
    return line


def _choose(
    config: Config, changes: Sequence[Change[Config]], limit: int, plan: Callable[[Config], Memory]
) -> tuple[list[Change[Config]], int]:
    """The first change that fits, else as many in their order as it takes, without needless ones; and the peak with them."""

    def peak(chosen: Iterable[Change[Config]]) -> int:
        return plan(_with(config, chosen)).peak

    for change in changes:
        if (size := peak([change])) <= limit:
            return [change], size
    chosen: list[Change[Config]] = []
    best = peak([])
    for change in changes:
        size = peak([*chosen, change])
        if size <= best:  # what saves nothing yet may, once a larger phase has shrunk
            chosen, best = [*chosen, change], size
        if best <= limit:
            break
    for change in chosen[-2::-1] if best <= limit else ():
        fewer = [kept for kept in chosen if kept is not change]
        if (size := peak(fewer)) <= limit:
            chosen, best = fewer, size
    return chosen, best


def _with(config: Config, changes: Iterable[Change[Config]]) -> Config:
    for change in changes:
        config = change(config) or config
    return config


def typed(before: Any, after: Any) -> str:
    """The options that make one configuration of another, as they are typed: one for each field that differs, in the fields' order."""
    words: list[str] = []
    for name in (item.name for item in fields(before) if getattr(before, item.name) != getattr(after, item.name)):
        option, value = name.replace("_", "-"), getattr(after, name)
        words.append(f"--{'' if value else 'no-'}{option}" if isinstance(value, bool) else f"--{option} {value}")
    return " ".join(words)


def device_limit(device_memory: float | None, device: str) -> int | None:
    """Bytes of the device to plan for: `device_memory` in GiB, or those of the GPU that is here, or None."""
    if device_memory is not None:
        return int(device_memory * GIB)
    import torch

    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_properties(torch.device(device)).total_memory
    return None


def human(size: float) -> str:
    """Bytes in GiB, or in MiB where that says more."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
