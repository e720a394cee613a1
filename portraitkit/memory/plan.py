"""The arithmetic of a training run's memory on one device, and the search for settings that make it fit.

What a model's own code allocates is not guessed here: `portraitkit.memory.trace` runs it on the meta device. This file adds what stands
beside it (gradients, optimiser states, shards of them), and says what to change when the sum is too large.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Generic, Literal, TypeVar

from portraitkit.errors import ConfigError

GIB = 2**30
CONTEXT = int(0.6 * GIB)
"""Assumed of a GPU: CUDA's context and cuBLAS's workspace."""
FRAGMENTS = 0.05
"""Assumed of a GPU: what the allocator holds in pieces too small to use, as a share of all else."""
NF4 = 0.5 + 4 / 64
"""Bytes of a value in NF4: 4 bits, and a float32 scale for each 64 values (bitsandbytes without double quantisation)."""
EIGHT_BIT_FROM, EIGHT_BIT_BLOCK = 4096, 256
"""bitsandbytes keeps states of smaller tensors in float32; the others have a float32 scale for each block."""
Config = TypeVar("Config")
Sharding = Literal["none", "zero2", "zero3", "fsdp2"]
"""fsdp2 is the retoucher's; zero2 and zero3 are those of the vision-language models' trainers."""


@dataclass(frozen=True)
class Shards:
    """How a run is split over devices."""

    kind: Sharding = "none"
    """zero2: gradients and optimiser states are split; zero3 and fsdp2: the weights, too; none: each device holds all."""
    devices: int = 1
    """That take part."""

    @property
    def of_state(self) -> int:
        """Parts that gradients and optimiser states are split into."""
        return 1 if self.kind == "none" else self.devices

    @property
    def of_weights(self) -> int:
        """Parts that weights are split into."""
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
        """Their bytes, which those of their gradients equal."""
        return sum(values * width for values, width in self.tensors)

    @property
    def largest(self) -> int:
        """Bytes of the largest."""
        return max((values * width for values, width in self.tensors), default=0)

    def states(self, optimizer: str, shards: Shards) -> int:
        """Bytes of AdamW's two moments on one device, and of DeepSpeed's float32 copy of bf16 weights.

        Args:
            optimizer: adamw or adamw_8bit.
            shards: how the run is split. ZeRO keeps moments and a copy in float32; FSDP2 and a plain run keep the weights' type.
        """
        if shards.kind in ("zero2", "zero3"):
            return sum(values * (8 + 4 * (width < 4)) for values, width in self.tensors) // shards.devices
        if optimizer == "adamw_8bit":
            return sum(_eight_bit(values) if values >= EIGHT_BIT_FROM else 8 * values for values, _ in self.tensors) // shards.of_state
        return 2 * self.size // shards.of_state


def _eight_bit(values: int) -> int:
    return 2 * (values + 4 * -(-values // EIGHT_BIT_BLOCK))


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    parameters: int
    """All of the model that is trained."""
    trained: int
    """Of them (or beside them, a LoRA's)."""
    held: Mapping[str, int]
    """What stays all the time, by name."""
    phases: Mapping[str, int]
    """What comes on top while each part of a training step runs; one runs at a time."""
    gpu: bool = True
    """Whether the device has a context and an allocator of its own."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Further lines of the table."""

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


@dataclass(frozen=True)
class Change(Generic[Config]):
    """One change of a run that saves memory."""

    words: str
    """Its name."""
    apply: Callable[[Config], Config | None]
    """The changed configuration; None where it changes nothing."""
    more_devices: bool = False
    """It asks for more devices: tried only where nothing else helps."""


def check_fits(
    config: Config, memory: Memory, limit: int | None, changes: Sequence[Change[Config]], plan: Callable[[Config], Memory]
) -> None:
    """Refuse a run that cannot fit, with what makes it fit: one change if one does, else some together, none of them needless.

    Args:
        config: of the run.
        memory: its plan.
        limit: bytes of the device; None: not known, nothing is refused.
        changes: in the order in which they are to be tried, the least painful first.
        plan: plans a changed run.

    Raises:
        ConfigError: it cannot fit; what would make it fit is named, or that nothing here does.
    """
    if limit is None or memory.peak <= limit:
        return
    problem = f"--device-memory: the run needs {human(memory.peak)} on a device (while: {memory.at_peak}), which has {human(limit)}"
    found, best = _fitting(config, limit, changes, plan)
    if found is None:
        raise ConfigError(f"{problem}; no change that is known here makes it fit: with all of them it needs {human(best)}")
    raise ConfigError(f"{problem}; {typed(config, _changed(config, found))} makes it fit: {human(best)}")


def typed(before: Any, after: Any) -> str:
    """The options that make one configuration of another, as they are typed: one for each field that differs, in the fields' order."""
    words: list[str] = []
    for name in (item.name for item in fields(before) if getattr(before, item.name) != getattr(after, item.name)):
        option, value = name.replace("_", "-"), getattr(after, name)
        words.append(f"--{'' if value else 'no-'}{option}" if isinstance(value, bool) else f"--{option} {value}")
    return " ".join(words)


def _changed(config: Config, chosen: Iterable[Change[Config]]) -> Config:
    for change in chosen:
        config = change.apply(config) or config
    return config


def _fitting(
    config: Config, limit: int, changes: Sequence[Change[Config]], plan: Callable[[Config], Memory]
) -> tuple[list[Change[Config]] | None, int]:
    """The changes that fit and the bytes then; None and the fewest bytes reached."""

    def peak(chosen: Iterable[Change[Config]]) -> int:
        return plan(_changed(config, chosen)).peak

    best = plan(config).peak
    able = [change for change in changes if change.apply(config) is not None]
    here, beyond = ([change for change in able if change.more_devices is more] for more in (False, True))
    for some in (here, [*beyond, *here]) if beyond else (here,):
        for change in some:
            if (now := peak([change])) <= limit:
                return [change], now
        chosen, now = _together(some, peak, limit, plan(config).peak)
        if now <= limit:
            return chosen, now
        best = min(best, now)
    return None, best


def _together(
    changes: Sequence[Change[Config]], peak: Callable[[Sequence[Change[Config]]], int], limit: int, start: int
) -> tuple[list[Change[Config]], int]:
    """Changes that save together, in their order until it fits, without those that it fits without; and the bytes then."""
    chosen: list[Change[Config]] = []
    best = start
    for change in changes:
        now = peak([*chosen, change])
        if now <= best:  # what saves nothing yet may, once a larger phase has shrunk
            chosen, best = [*chosen, change], now
        if best <= limit:
            break
    for change in chosen[-2::-1] if best <= limit else ():
        if (now := peak(fewer := [kept for kept in chosen if kept is not change])) <= limit:
            chosen, best = fewer, now
    return chosen, best


def device_limit(device_memory: float | None, device: str) -> int | None:
    """Bytes of the device to plan for: as given, or those of the GPU that is here.

    Args:
        device_memory: in GiB, or None.
        device: of the run.
    """
    if device_memory is not None:
        return int(device_memory * GIB)
    import torch

    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_properties(torch.device(device)).total_memory
    return None


def check_planning(device_memory: float | None, devices: int) -> None:
    """Refuse impossible options of a plan.

    Raises:
        ConfigError: memory or devices are out of range.
    """
    if device_memory is not None and not 0 < device_memory < 1e6:
        raise ConfigError(f"--device-memory {device_memory:g}: must be above 0, in GiB, such as 24 or 80")
    if devices < 1:
        raise ConfigError(f"--plan-devices {devices}: must be 1 or more")


def human(size: float) -> str:
    """Bytes in GiB, or in MiB where that says more."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
