"""Work divided over processes and machines: each makes its share and keeps it in a file of its own; one merges them in the input's order.

The processes share a file system and nothing else: `OUTPUT_DIR/shards/2-of-8.jsonl.part` grows row by row, loses its `.part` when the share
is done, and has a lock beside it whose time of change says that its process lives. Nobody waits in a collective once the work has begun, so
a process that fails or is killed leaves nobody hanging; started again, it goes on with its own file.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from portraitkit.errors import ConfigError

MOST = 10_000
Row = TypeVar("Row")


@dataclass(frozen=True)
class Shard:
    """A share of the work.

    Attributes:
        index: which, from 0.
        count: of how many.
        launched: a launcher started all shards, and the first one merges; else each is a job of its own, and one more run merges.
        local: place among the processes of its machine, from 0.
    """

    index: int
    count: int
    launched: bool = False
    local: int = 0

    def __str__(self) -> str:
        """As `--shard` takes it: 2/8."""
        return f"{self.index + 1}/{self.count}"

    @property
    def name(self) -> str:
        """As in file names: 02-of-16."""
        return f"{self.index + 1:0{len(str(self.count))}d}-of-{self.count}"

    @property
    def merges(self) -> bool:
        """Whether this process merges what all have made."""
        return self.launched and self.index == 0

    def share(self, rows: Sequence[Row]) -> list[Row]:
        """Every `count`-th row, from the one at `index`: neighbours differ little in size, so the shares take about as long."""
        return list(rows[self.index :: self.count])

    def order(self, rows: Sequence[Row]) -> list[Row]:
        """All rows, for work that every process needs done: the own share first, then the others', each from its end.

        Whoever comes to a row leaves it out if it is done by then. So nobody waits for a process that is slow, gone or not started yet,
        and few rows are made twice.
        """
        others = [(self.index + ahead) % self.count for ahead in range(1, self.count)]
        return [*self.share(rows), *(row for other in others for row in reversed(rows[other :: self.count]))]


def parse_shard(text: str) -> Shard:
    """`2/8`: the second of eight.

    Raises:
        ConfigError: not of that form, or out of range.
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]) <= MOST:
        raise ConfigError(f"--shard {text}: must be I/N with I from 1 to N (at most {MOST}), for example 2/8")
    return Shard(int(found[1]) - 1, int(found[2]))


def check_shard(shard: str | None, overwrite: bool) -> None:
    """What a configuration with `--shard` and `--overwrite` refuses.

    Raises:
        ConfigError: not I/N, or something would be deleted that other shards have made.
    """
    several = shard is not None or _processes() > 1
    if shard is not None:
        parse_shard(shard)
        if _processes() > 1:
            raise ConfigError(f"--shard {shard}: is for single jobs; torchrun and accelerate launch divide the work by themselves")
    if several and overwrite:
        raise ConfigError("--overwrite: would delete what other shards have made; remove the folder first, or give another --output-dir")


def current_shard(option: str | None) -> Shard | None:
    """The share of this process: as `--shard` says, or as torchrun or accelerate launch started it; None where it does everything.

    Args:
        option: of the command line, checked by `check_shard`.
    """
    if option is not None:
        return parse_shard(option)
    if _processes() == 1:
        return None
    from accelerate import PartialState

    state = PartialState(cpu=True)
    return Shard(state.process_index, state.num_processes, True, state.local_process_index)


def _processes() -> int:
    """How many a launcher has started; 1 without one. A lone WORLD_SIZE, as some clusters set it, says nothing."""
    known = "LOCAL_RANK" in os.environ and "RANK" in os.environ
    return int(os.environ.get("WORLD_SIZE", "1")) if known else 1
