"""The processes of one run that `torchrun` or `accelerate launch` started: who they are, and work divided among them."""

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def launched_processes() -> int:
    """World size; 1 without a launcher. A lone WORLD_SIZE, as some clusters set it, says nothing."""
    launched = "LOCAL_RANK" in os.environ and "RANK" in os.environ
    return int(os.environ.get("WORLD_SIZE", "1")) if launched else 1


def is_first_process() -> bool:
    """Whether this process has rank 0, which talks to the user and writes files; true without a launcher."""
    return os.environ.get("RANK", "0") == "0"


def processes() -> tuple[int, int]:
    """How many processes this run has, and the number of this one from 0; (1, 0) where none were started."""
    from accelerate import PartialState

    state = PartialState() if PartialState._shared_state else None
    return (state.num_processes, state.process_index) if state else (1, 0)


def gathered(value: Result) -> list[Result]:
    """The value of each process, in their order; every process must be here."""
    from accelerate.utils import gather_object

    return [value] if processes()[0] == 1 else gather_object([value])


def divided(items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]) -> list[Result]:
    """One result for each item; each process works on its share, and all get all."""
    count, mine = processes()
    parts = gathered(work(items[mine::count]))
    return [parts[index % count][index // count] for index in range(len(items))]
