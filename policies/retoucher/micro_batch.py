"""How many rows a device has room for: work is tried with as many as the run says, and again with half of them where memory runs out."""

from collections.abc import Callable
from typing import TypeVar

import torch

from portraitkit.errors import OutOfMemory

T = TypeVar("T")
ADVICE = "a smaller --resolution, --gradient-checkpointing, --offload-text-encoder or --quantize nf4 may fit; --dry-run says what does"


class MicroBatch:
    """Rows that go through the networks at once. Once halved it stays so: what does not fit now will not fit later.

    Messages say `what` they are there for; `say` notes a halving in a line. Where other processes must evaluate equally often (`fixed`, as
    with `--sharding fsdp2`), nothing is tried again.
    """

    def __init__(self, rows: int, what: str = "work", *, say: Callable[[str], object] = lambda line: None, fixed: bool = False) -> None:
        self.rows, self.what, self.say, self.fixed = rows, what, say, fixed

    def fit(self, total: int, work: Callable[[int], T]) -> T:
        """What `work` returns with as many of all rows, `total`, at once as there is room for. It can be begun again, and ends then as if
        it had not been tried before. OutOfMemory: one row does not fit, or all processes would have to try again."""
        while True:
            try:
                return work(self.rows)
            except torch.OutOfMemoryError as error:
                reason = str(error).partition(". ")[0]
            # Outside of the handler: until here the error held what the attempt had allocated.
            tried = min(self.rows, total)
            if tried <= 1:
                raise OutOfMemory(f"{self.what}, one at a time: {reason}; {ADVICE}", alone=self.fixed)
            if self.fixed:
                fix = f"with --sharding fsdp2 no process can halve alone; start with --micro-batch {tried // 2}"
                raise OutOfMemory(f"{self.what}, {tried} at once: {reason}; {fix}", alone=True)
            self.rows = tried // 2
            self.say(f"{self.what}: out of memory with {tried} at once; on with {self.rows}, as --micro-batch {self.rows} would")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
