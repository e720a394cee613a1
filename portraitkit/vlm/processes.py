"""Several processes of one run, started by torchrun or accelerate launch: who they are, work divided among them, what they hold."""

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from portraitkit.errors import CheckpointError

Item = TypeVar("Item")
Result = TypeVar("Result")


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


def release() -> None:
    """Let go of what DeepSpeed's configuration and a trainer hold, before a model is loaded whole or the next trainer is made."""
    import torch
    from accelerate.state import AcceleratorState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    AcceleratorState._reset_state()  # or a second trainer could not have its own DeepSpeed configuration
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def check_processes(checkpoint: str | None, count: int, *, allow_changed: bool = False) -> str | None:
    """Refuse to go on from a checkpoint with another number of processes, unless that is allowed and can be.

    Args:
        checkpoint: a checkpoint's folder, or None.
        count: processes of this run.
        allow_changed: go on all the same. DeepSpeed's checkpoints hold a share of the optimiser for each process, which no other number
            can read: with them it is not possible.

    Returns:
        What is not as in the run before, for the user; None where nothing differs.

    Raises:
        CheckpointError: it was written by another number.
    """
    before = len(list(Path(checkpoint).glob("rng_state_*.pth"))) or 1 if checkpoint is not None else count
    if before == count:
        return None
    written = f"was written by {before} process{'es' if before > 1 else ''}, this run has {count}"
    start = f"start {before}, as with torchrun --nproc-per-node {before}"
    if any(Path(str(checkpoint)).glob("global_step*")):
        raise CheckpointError(
            f"--resume-from-checkpoint {checkpoint}: {written}; {start}, for each holds a share of DeepSpeed's optimiser, and "
            "--allow-changed cannot change that"
        )
    if not allow_changed:
        raise CheckpointError(
            f"--resume-from-checkpoint {checkpoint}: {written}; {start}, or use --allow-changed to go on with updates of another size"
        )
    return f"{checkpoint}: {written}: an update takes {count}/{before} of the rows, other ones, and random numbers start anew"
