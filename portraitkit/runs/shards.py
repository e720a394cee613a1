"""Work divided over processes and machines: each makes its share and keeps it in a file of its own; one merges them in the input's order.

The processes share a file system and nothing else: `OUTPUT_DIR/shards/2-of-8.jsonl.part` grows row by row, loses its `.part` when the share
is done, and has a lock beside it (`portraitkit.runs.locks`). Nobody waits in a collective once the work has begun, so
a process that fails or is killed leaves nobody hanging; started again, it goes on with its own file.
"""

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from portraitkit.errors import ConfigError, RunFolderError, UserError
from portraitkit.files.atomic import create, write_text, writing
from portraitkit.files.jsonl import append_line, read_json_lines
from portraitkit.parallel import launched_processes
from portraitkit.runs.folder import Maker, check_run_folder, environment, may_resume
from portraitkit.runs.locks import LOST, Lock, last_change

SHARDS = "shards"
OPTIONS = "options.json"
MOST = 10_000
Row = TypeVar("Row")


@dataclass(frozen=True)
class Shard:
    """A share of the work."""

    index: int  # which, from 0
    count: int  # of how many
    # a launcher started all shards, and the first one merges; else each is a job of its own, and one more run merges
    launched: bool = False
    local: int = 0  # place among the processes of its machine, from 0

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
    """`2/8`: the second of eight. ConfigError: not of that form, or out of range."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]) <= MOST:
        raise ConfigError(f"--shard {text}: must be I/N with I from 1 to N (at most {MOST}), for example 2/8")
    return Shard(int(found[1]) - 1, int(found[2]))


def check_shard(shard: str | None, overwrite: bool) -> None:
    """What a configuration with `--shard` and `--overwrite` refuses.

    Raises:
        ConfigError: not I/N, or something would be deleted that other shards have made.
    """
    several = shard is not None or launched_processes() > 1
    if shard is not None:
        parse_shard(shard)
        if launched_processes() > 1:
            raise ConfigError(f"--shard {shard}: is for single jobs; torchrun and accelerate launch divide the work by themselves")
    if several and overwrite:
        raise ConfigError("--overwrite: would delete what other shards have made; remove the folder first, or give another --output-dir")


def current_shard(option: str | None) -> Shard | None:
    """The share of this process: as `--shard` says (checked by `check_shard`), or as torchrun or accelerate launch started it; None where
    it does everything.
    """
    if option is not None:
        return parse_shard(option)
    if launched_processes() == 1:
        return None
    from accelerate import PartialState

    state = PartialState(cpu=True)
    return Shard(state.process_index, state.num_processes, True, state.local_process_index)


class ShardFile:
    """The rows of one shard, each on the disk when `append` returns; used as a context, it keeps other processes out.

    `options` are what all shards of a folder must have in common, JSON-able; the first process to come says what. `rows` are what an
    earlier run made of this shard; a line that a killed process left unfinished is left out.
    """

    def __init__(self, folder: Path, shard: Shard, options: Mapping[str, Any]) -> None:
        self.folder, self.shard = folder / SHARDS, shard
        self._options = {"shards": shard.count, **json.loads(json.dumps(options))}
        self._done, self._part = self.folder / f"{shard.name}.jsonl", self.folder / f"{shard.name}.jsonl.part"
        self._lock = Lock(self.folder / f"{shard.name}.lock", self.folder / shard.name, "is making this shard")
        self.rows: list[dict[str, Any]] = []

    @property
    def finished(self) -> bool:
        """Whether the share is done."""
        return self._done.is_file()

    def append(self, row: dict[str, Any]) -> None:
        """Keep a row; RunFolderError: the file cannot be written."""
        append_line(self._part, row)

    def finish(self) -> None:
        """Say that the share is done."""
        if not self.finished:
            self._part.touch()
            self._part.replace(self._done)

    def __enter__(self) -> Self:
        """Take the shard, and wait until the launcher's other processes have theirs.

        Raises:
            RunFolderError: other options or another number of shards, the folder cannot be written, or another process has this shard.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            _agree(self.folder, self._options)
            self._lock.take()
        try:
            path = self._done if self.finished else self._part
            self.rows = read_json_lines(path, dict).rows if path.is_file() else []
            if self.shard.launched:
                _start_together()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Let go of the shard."""
        self._lock.release()


def has_shards(folder: Path) -> bool:
    """Whether shards have been made in an output folder that are not merged yet."""
    return (folder / SHARDS / OPTIONS).is_file()


def merged_rows(folder: Path) -> list[list[dict[str, Any]]]:
    """The rows of all shards of an output folder, shard by shard. RunFolderError: a shard is missing or not finished; all of them are
    named."""
    shards = _all(folder)
    missing = [shard for shard in shards if not (folder / SHARDS / f"{shard.name}.jsonl").is_file()]
    if missing:
        named = ", ".join(map(str, missing[:8])) + (f" and {len(missing) - 8} more" if missing[8:] else "")
        raise RunFolderError(
            f"{folder}: shard {named} {'is' if len(missing) == 1 else 'are'} not finished; run the same command with --shard {missing[0]}, "
            f"or remove {folder / SHARDS} to start anew"
        )
    return [read_json_lines(folder / SHARDS / f"{shard.name}.jsonl", dict).rows for shard in shards]


def wait_for_shards(folder: Path, stop: Callable[[], bool], *, lost: float = LOST) -> bool:
    """Wait until the launcher's other processes have finished their shards; returns False where `stop`, asked twice a second, said so.
    `lost` are the seconds without a sign of life after which a process is taken for gone; a tenth of it, where it has let go of its
    shard. RunFolderError: a process ended before its share was done, or gives no sign of life.
    """
    seen: dict[str, tuple[float | None, float]] = {}
    pending = _all(folder)
    while pending := [shard for shard in pending if not (folder / SHARDS / f"{shard.name}.jsonl").is_file()]:
        if stop():
            return False
        for shard in pending:
            beat, now = last_change(folder / SHARDS / f"{shard.name}.lock"), time.monotonic()
            if shard.name not in seen or seen[shard.name][0] != beat:
                seen[shard.name] = beat, now
            elif beat is None and now - seen[shard.name][1] > lost / 10:
                raise RunFolderError(f"{folder}: the process of shard {shard} ended before its share was done; the same command goes on")
            elif now - seen[shard.name][1] > lost:
                raise RunFolderError(f"{folder}: no sign of life of shard {shard} for {lost:.0f} s; the same command goes on")
        time.sleep(0.5)
    return True


def clear_shards(folder: Path) -> None:
    """Remove the shards of an output folder: they are merged, or no longer wanted."""
    shutil.rmtree(folder / SHARDS, ignore_errors=True)


def create_whole(folder: Path, files: Mapping[str, str]) -> None:
    """Create a folder with files in it in one step; where several processes try, one does it. A folder with anything in it stays as it is.

    Raises:
        RunFolderError: it cannot be made.
    """
    temporary = folder.with_name(f".{folder.name}.{socket.gethostname()}-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        for name, text in files.items():
            write_text(temporary / name, text)
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder.is_dir() and any(folder.iterdir())):
                raise
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be made a folder ({error.strerror}); choose another --output-dir") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def join_run(path: Path, config: dict[str, Any], maker: Maker, *, command: list[str], seed: int) -> None:
    """Make a run folder for all shards, or check that the one there is theirs; the processes may come in any order, or at once.

    Raises:
        RunFolderError: the folder holds other files, or another run.
    """
    if not (path / "config.json").is_file():
        try:
            check_run_folder(path)
        except RunFolderError:
            if not (path / "config.json").is_file():  # else another shard has just made it
                raise
        texts = {"config.json": config, "environment.json": environment(command, seed)}
        create_whole(path, {name: json.dumps(value, indent=2) + "\n" for name, value in texts.items()})
    may_resume(path, config, maker)


class Growing:
    """JSON lines that several processes append to files `shards/<what>-<shard>.jsonl` of one folder, read as they grow."""

    def __init__(self, folder: Path, what: str) -> None:
        self.folder, self.what, self._read = folder / SHARDS, what, dict[Path, int]()

    def own(self, shard: Shard) -> Path:
        """The file that a shard appends to."""
        return self.folder / f"{self.what}-{shard.name}.jsonl"

    def new(self) -> Iterator[dict[str, Any]]:
        """Rows that were not there at the last call; a line that is being written waits for the next one, a broken one is left out."""
        for path in sorted(self.folder.glob(f"{self.what}-*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            for line in whole.splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    yield row


def _all(folder: Path) -> list[Shard]:
    path = folder / SHARDS / OPTIONS
    try:
        count = json.loads(path.read_text(encoding="utf-8"))["shards"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path}: cannot be read ({error}); remove {path.parent} to start anew") from error
    return [Shard(index, count) for index in range(count)]


def _agree(folder: Path, options: Mapping[str, Any]) -> None:
    path = folder / OPTIONS
    if not path.is_file():
        create(path, json.dumps(options) + "\n")
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key in options if before.get(key) != options[key]]
    except (ValueError, AttributeError) as error:
        raise RunFolderError(f"{path}: cannot be read ({error}); remove {folder} to start anew") from error
    if "shards" in changed:
        raise RunFolderError(
            f"{folder}: holds {before.get('shards')} shards, these would be {options['shards']}; go on with {before.get('shards')}, "
            "or remove that folder to start anew"
        )
    if changed:
        key = changed[0]
        raise RunFolderError(
            f"{folder}: the other shards have --{key.replace('_', '-')} {before.get(key)!r}, this one {options[key]!r}; give all the same "
            "options, or remove that folder to start anew"
        )


def _start_together() -> None:
    """Wait until all processes have their shards: before, nobody can tell one that is late from one that is gone. Then the group ends.

    Raises:
        UserError: another process ended before.
    """
    from accelerate import PartialState

    state = PartialState()
    try:
        state.wait_for_everyone()
    except RuntimeError as error:
        raise UserError("another process ended before the work began; its own line says why") from error
    state.destroy_process_group()
    PartialState._reset_state()  # what follows is a process of its own
