"""Work divided over processes and machines: each makes its share and keeps it in a file of its own; one merges them in the input's order.

The processes share a file system and nothing else: `OUTPUT_DIR/shards/2-of-8.jsonl.part` grows row by row, loses its `.part` when the share
is done, and has a lock beside it (`portraitkit.runs.locks`). Nobody waits in a collective; a launcher ends the others where one fails, and
a process that is started again goes on with its own file.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from portraitkit.errors import ConfigError, RunFolderError
from portraitkit.files.atomic import create, write_text, writing
from portraitkit.files.jsonl import append_line, read_json_lines
from portraitkit.parallel import launched_processes
from portraitkit.runs.folder import Maker, check_run_folder, environment, may_resume
from portraitkit.runs.locks import Lock

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
    return Shard(int(os.environ["RANK"]), launched_processes(), True, int(os.environ["LOCAL_RANK"]))


class ShardFile:
    """The rows of one shard, each on the disk when `append` returns; used as a context, it keeps other processes out.

    `options` are what all shards of a folder must have in common, JSON-able; the first process to come says what, or the one that begins
    `anew`. `rows` are what an earlier run made of this shard; a line that a killed process left unfinished is left out.
    """

    def __init__(self, folder: Path, shard: Shard, options: Mapping[str, Any], *, anew: bool = False) -> None:
        self.folder, self.shard, self._anew = folder / SHARDS, shard, anew
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
        """Take the shard.

        Raises:
            RunFolderError: other options or another number of shards, the folder cannot be written, or another process has this shard.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.take()
        try:
            if self._anew:
                for path in self.folder.glob("*.jsonl*"):
                    path.unlink()
                write_text(self.folder / OPTIONS, json.dumps(self._options) + "\n")
            _agree(self.folder, self._options)
            path = self._done if self.finished else self._part
            self.rows = read_json_lines(path, dict).rows if path.is_file() else []
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Let go of the shard."""
        self._lock.release()


def shard_count(folder: Path, options: Mapping[str, Any] | None = None) -> int:
    """Shards into which the work in an output folder is divided, until it is merged; 0 where none has begun.

    Raises:
        RunFolderError: it was begun with other `options`, or the folder cannot be read.
    """
    if not (folder / SHARDS / OPTIONS).is_file():
        return 0
    _agree(folder / SHARDS, json.loads(json.dumps(options or {})))
    return len(_all(folder))


def merged_rows(folder: Path) -> list[list[dict[str, Any]]]:
    """The rows of all shards of an output folder, shard by shard. RunFolderError: a shard is missing or not finished; all of them are
    named."""
    if missing := _unfinished(folder):
        named = ", ".join(map(str, missing[:8])) + (f" and {len(missing) - 8} more" if missing[8:] else "")
        raise RunFolderError(
            f"{folder}: shard {named} {'is' if len(missing) == 1 else 'are'} not finished; run the same command with --shard {missing[0]}, "
            f"or remove {folder / SHARDS} to start anew"
        )
    return [read_json_lines(folder / SHARDS / f"{shard.name}.jsonl", dict).rows for shard in _all(folder)]


def wait_for_shards(folder: Path, stop: Callable[[], bool]) -> bool:
    """Wait until all shards are finished, or the launcher ends this process, too; False where `stop`, asked twice a second, said so."""
    while _unfinished(folder):
        if stop():
            return False
        time.sleep(0.5)
    return True


def clear_shards(folder: Path) -> None:
    """Remove the shards of an output folder: they are merged, or no longer wanted."""
    shutil.rmtree(folder / SHARDS, ignore_errors=True)


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
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            for name, value in (("config.json", config), ("environment.json", environment(command, seed))):
                create(path / name, json.dumps(value, indent=2) + "\n")
    may_resume(path, config, maker)


class Growing:
    """JSON lines that several processes append to, each to its `own` file, read as they grow: those of the files beside it whose names
    match the `pattern`, or of the own one alone."""

    def __init__(self, own: Path, pattern: str = "") -> None:
        self.own, self._pattern, self._read = own, pattern or escape(own.name), dict[Path, int]()

    def append(self, row: Mapping[str, Any]) -> None:
        """Keep a row in the own file; RunFolderError: it cannot be written."""
        append_line(self.own, row)

    def new(self) -> Iterator[dict[str, Any]]:
        """Rows that were not there at the last call; a line that is being written waits for the next one, a broken one is left out."""
        for path in sorted(self.own.parent.glob(self._pattern)):
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


def _unfinished(folder: Path) -> list[Shard]:
    return [shard for shard in _all(folder) if not (folder / SHARDS / f"{shard.name}.jsonl").is_file()]


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
            f"{folder}: holds work with another --{key.replace('_', '-')} ({before.get(key)!r}, now {options[key]!r}); give the same "
            "options to go on, or remove that folder to start anew"
        )
