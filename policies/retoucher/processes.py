"""The processes of a run that `torchrun` or `accelerate launch` started: who takes which groups, and how their parts come together.

Groups are dealt out whole, one after the other, so that every process has as many as the next, or one more. Every number that decides
anything (rewards, advantages, losses, the best validation) is put together from all processes in the order of the groups, and so is the
same everywhere; the first process alone writes files.

Gradients are summed by one `all_reduce` an update, each process having divided by the candidates of the whole update. Wrapping the
transformer in DistributedDataParallel would not do: it averages over processes as if each had equally many candidates, and it waits in
each backward for all others, while here the number of backwards follows from the data (groups without spread are left out).
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from portraitkit.errors import ConfigError, OutOfMemory, TrainingStopped, UserError
from portraitkit.parallel import launched_processes
from portraitkit.runs.terminal import Interruptible

T = TypeVar("T")
TIMEOUT = timedelta(hours=2)  # How long a process waits for another: for its rewards, or while the first one writes the report
BUCKET = 16 * 2**20  # Values of a gradient that are summed at once


@dataclass
class Processes:
    """This process among those of the run."""

    rank: int = 0  # number of this process, from 0
    count: int = 1  # of all processes
    device: str = "cpu"  # of this process, as torch names it
    failed: bool = field(default=False, init=False)  # whether an error was shared by `together`: then every process ends with it

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def share(self, total: int) -> list[int]:
        """Which of `total` things this process takes; ascending, none where there are fewer things than processes."""
        return list(range(self.rank, total, self.count))

    def in_order(self, shares: Sequence[Tensor], block: int = 1) -> Tensor:
        """Rows of all processes, as `gather` returns them, in the order of the things that `share` dealt out.

        Args:
            shares: one tensor a process; those of processes without a share may be left out.
            block: rows of one thing.
        """
        joined = shares[0] if len(shares) == 1 else torch.cat(list(shares))
        total = len(joined) // block
        order = torch.cat([torch.arange(min(rank, total), total, self.count) for rank in range(self.count)])
        blocks = joined.unflatten(0, (total, block))
        return torch.empty_like(blocks).index_copy_(0, order, blocks).flatten(0, 1)

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order; everything in them must be on the CPU."""
        if self.count == 1:
            return [value]
        everyone: list[T | None] = [None] * self.count
        dist.all_gather_object(everyone, value)
        return everyone  # pyright: ignore[reportReturnType]

    def together(self, work: Callable[[], T]) -> T:
        """What `work` returns in this process, once all processes have done theirs.
        UserError: of the first process in which `work` raised one; the same in all of them."""
        if self.count == 1:
            return work()
        done, own = None, None
        try:
            done = work()
        except UserError as error:
            if isinstance(error, OutOfMemory) and error.alone:
                raise  # the launcher ends the others
            own = error
        for error in self.gather(own):
            if error is not None:
                self.failed = True
                raise error
        return done  # pyright: ignore[reportReturnType]

    def only_first(self, work: Callable[[], T]) -> T | None:
        """What `work` returns in the first process, None in the others, which wait for it."""
        return self.together(lambda: work() if self.first else None)

    def largest(self, numbers: list[int]) -> list[int]:
        """The largest of all processes, for each place in the list."""
        return [max(some) for some in zip(*self.gather(numbers), strict=True)]

    def stop_signal(self, interrupt: Interruptible) -> int:
        """The signal that asked any process to stop, 0 if none did: a decision that all of them share."""
        return max(self.gather(int(interrupt.requested or 0)))

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors by those of the first process."""
        for tensor in tensors if self.count > 1 else ():
            dist.broadcast(tensor.detach(), 0)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each parameter's gradient by the sum over all processes; it stays None where no process has one."""
        if self.count == 1:
            return
        parameters = list(parameters)
        used = self.gather([p.grad is not None for p in parameters])
        summed = [p for p, has in zip(parameters, zip(*used, strict=True), strict=True) if any(has)]
        buckets, size = list[list[Tensor]](), BUCKET
        for parameter in summed:  # consecutive ones of together at most `BUCKET` values, or one that is larger
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if (size := size + parameter.numel()) > BUCKET:
                buckets.append([])
                size = parameter.numel()
            buckets[-1].append(parameter.grad)
        for gradients in buckets:
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))


@contextmanager
def open_processes(device: str) -> Iterator[Processes]:
    """The processes of this run, found by the environment that `torchrun` and `accelerate launch` set; one process without it.

    They talk by gloo on the CPU, and by NCCL where their devices are GPUs; each takes the GPU with its local rank. A `UserError` that
    they share is told by the first one, the others end in silence with the same exit code.
    ConfigError: one GPU for all processes, fewer GPUs than processes, or half an environment."""
    count = launched_processes()
    if count == 1:
        yield Processes(device=device)
        return
    place = own_device(device)
    dist.init_process_group("gloo" if place == "cpu" else "cpu:gloo,cuda:nccl", timeout=TIMEOUT)
    processes = Processes(int(os.environ["RANK"]), count, place)
    try:
        yield processes
    except UserError as error:
        if not (processes.failed or isinstance(error, TrainingStopped)):  # what stops a training is decided by all alike
            raise
        dist.barrier()  # the launcher ends the others as soon as one has ended: not before the first has put its files away
        if not processes.first:
            raise SystemExit(error.exit_code) from error
        raise
    dist.barrier()
    dist.destroy_process_group()


def own_device(device: str) -> str:
    """The device of this process out of `--device`; ConfigError as in `open_processes`."""
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        size = os.environ["WORLD_SIZE"]
        raise ConfigError(f"WORLD_SIZE {size}: {', '.join(missing)} missing beside it; start by torchrun or accelerate launch")
    if device == "cpu":
        return device
    kind, _, index = device.partition(":")
    if kind != "cuda" or index:
        raise ConfigError(f"--device {device}: several processes take a GPU each, or the CPU; use --device cuda or cpu")
    local = int(os.environ["LOCAL_RANK"])
    if local >= torch.cuda.device_count():
        raise ConfigError(f"--device cuda: process {local} finds {torch.cuda.device_count()} GPUs here; start one process a GPU")
    torch.cuda.set_device(local)
    return f"cuda:{local}"
