"""Pair sets on disk: a folder with `metadata.jsonl` and pictures. Bad rows go to a quarantine file with number and reason."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from portraitkit.errors import DataError
from preference_data.schema import FILES, Pair, pair_of, row_of

METADATA = "metadata.jsonl"
QUARANTINE = "quarantine.jsonl"
MAX_LINE = 4 * 2**20
Row = TypeVar("Row")


@dataclass(frozen=True)
class Rejected:
    """A row that could not be read: its line number from 1, why, and its beginning."""

    line: int
    reason: str
    text: str


@dataclass(frozen=True)
class RowSet(Generic[Row]):
    """The good rows of a file with their line numbers, and the bad ones."""

    rows: list[Row]
    lines: list[int]
    rejected: list[Rejected]


def read_json_lines(path: Path, read: Callable[[dict[str, Any]], Row]) -> RowSet[Row]:
    """Read one object a line; a bad line never stops the others.

    Refused, each with its line number: what is not UTF-8 or not JSON, NaN and infinity, a key given twice, a line of more than 4 MiB, a
    value that is no object, and what `read` refuses by DataError. A BOM, CRLF and blank lines are taken. A last line that is cut off is
    refused like any other.

    Args:
        path: of the file.
        read: from an object to a row.

    Raises:
        DataError: the file cannot be opened.
    """
    result: RowSet[Row] = RowSet([], [], [])
    try:
        with path.open("rb") as file:
            for number, (line, cut) in enumerate(_lines(file), start=1):
                text = line.decode("utf-8", errors="replace").strip("\ufeff \t\r\n")
                if not text:
                    continue
                try:
                    if cut:
                        raise DataError(f"longer than {MAX_LINE // 2**20} MiB; a row names its pictures, it does not hold them")
                    result.rows.append(read(_parse(line)))
                    result.lines.append(number)
                except DataError as error:
                    result.rejected.append(Rejected(number, str(error), text[:500]))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return result


def read_pairs(folder: Path, *, max_bad: float = 0.0) -> list[Pair]:
    """The pairs of a folder, checked row by row; bad rows are written to its `quarantine.jsonl`.

    Args:
        folder: with `metadata.jsonl`.
        max_bad: largest share of bad rows that is put up with.

    Raises:
        DataError: no such file, nothing in it, or a larger share of bad rows; the first is named.
    """
    found = scan_pairs(folder)
    write_quarantine(folder, found.rejected)
    total = len(found.rows) + len(found.rejected)
    if not total:
        raise DataError(f"{folder / METADATA}: holds no row; make pairs with make-preferences build")
    if len(found.rejected) > max_bad * total:
        first = found.rejected[0]
        more = f" (and {len(found.rejected) - 1} more rows, see {QUARANTINE})" if found.rejected[1:] else ""
        raise DataError(f"{folder / METADATA} line {first.line}: {first.reason}{more}")
    if not found.rows:
        raise DataError(f"{folder / METADATA}: no row of {total} can be read; see {QUARANTINE}")
    return found.rows


def scan_pairs(folder: Path) -> RowSet[Pair]:
    """All pairs of a folder and all bad rows, without writing anything. Pictures are looked for, not opened.

    Raises:
        DataError: no such folder or file.
    """
    path = folder / METADATA
    if not path.is_file():
        raise DataError(f"{path}: no such file; a pair set is a folder with {METADATA} and pictures, see docs/preference_data.md")
    seen: set[str] = set()
    root = folder.resolve()

    def read(row: dict[str, Any]) -> Pair:
        pair = pair_of(row)
        if pair.id in seen:
            raise DataError(f"id {pair.id!r}: used by an earlier row; ids are unique")
        for name, column in FILES.items():
            if (file := getattr(pair, name)) is not None:
                check_inside(root, file, column)
        seen.add(pair.id)
        return pair

    return read_json_lines(path, read)


def check_inside(root: Path, name: str, column: str) -> Path:
    """The file `name` below `root`.

    Raises:
        DataError: an address, a path that leaves the folder (by .., a symlink or a root), or no such file.
    """
    if "://" in name or name.startswith("data:"):
        raise DataError(f"{column} {name[:80]!r}: is an address; pictures are files below the data folder, nothing is fetched")
    try:
        resolved = (root / name).resolve()
        inside, exists = resolved.is_relative_to(root), resolved.is_file()
    except (OSError, ValueError) as error:
        raise DataError(f"{column} {name[:80]!r}: is no file name ({error})") from error
    if not inside:
        raise DataError(f"{column} {name!r}: leaves the data folder; use paths below it")
    if not exists:
        raise DataError(f"{column} {name!r}: no such file in the data folder")
    return resolved


def write_pairs(folder: Path, pairs: Iterable[Pair]) -> None:
    """Write `metadata.jsonl` in one piece; the pictures must be there already."""
    write_lines(folder / METADATA, (row_of(pair) for pair in pairs))


def write_quarantine(folder: Path, rejected: list[Rejected]) -> None:
    """Write the bad rows beside the data, or remove an old quarantine where there are none."""
    if rejected:
        write_lines(folder / QUARANTINE, (vars(row) for row in rejected))
    else:
        (folder / QUARANTINE).unlink(missing_ok=True)


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines in one piece: a temporary file, then a rename.

    Raises:
        DataError: the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path}: could not be written ({error.strerror}); check the folder and the disk") from error
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append one row and flush it to the disk; a line that a killed process left unfinished is closed first.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"{path}: could not be written ({error.strerror}); check the folder and the disk") from error


def _lines(file: Any) -> Iterator[tuple[bytes, bool]]:
    """Lines of at most `MAX_LINE` bytes, and whether more followed (which is skipped, never held in memory)."""
    while line := file.readline(MAX_LINE + 1):
        cut = len(line) > MAX_LINE
        rest = line
        while cut and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE)
            if not rest:
                break
        yield line, cut


def _parse(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_no_twins, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start + 1}; save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({error}); one object a line") from error
    if not isinstance(value, dict):
        raise DataError(f"a {type(value).__name__}, not an object; one object a line")
    return value


def _no_twins(items: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(items)
    if len(row) != len(items):
        keys = [key for key, _ in items]
        raise DataError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return row


def _no_constant(name: str) -> float:
    raise DataError(f"{name} is no JSON number; use null")
