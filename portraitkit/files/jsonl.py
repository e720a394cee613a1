"""JSON, and JSON lines: read with line numbers, the bad lines refused or set aside; written in one piece, or line by line onto the disk."""

import json
import math
import os
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Generic, NoReturn, TypeVar

from portraitkit.errors import DataError
from portraitkit.files.atomic import replacing, writing

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
    refused like any other. DataError: the file cannot be opened.
    """
    result: RowSet[Row] = RowSet([], [], [])
    try:
        with path.open("rb") as file:
            for number, (line, cut) in enumerate(_lines(file), start=1):
                if not line.removeprefix(BOM_UTF8).strip():
                    continue
                try:
                    if cut:
                        raise DataError(f"longer than {MAX_LINE // 2**20} MiB; a row names its pictures, it does not hold them")
                    result.rows.append(read(_parse(line, strict=True)))
                    result.lines.append(number)
                except DataError as error:
                    text = line.decode("utf-8", errors="replace").strip("\ufeff \t\r\n")
                    result.rejected.append(Rejected(number, str(error), text[:500]))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return result


def read_objects(path: Path, *, strict: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file (- is the standard input) with their line numbers, up to the first bad line. A BOM, CRLF and blank lines are
    taken; `strict` refuses NaN and infinity, which are no JSON, and a key given twice.
    DataError: the file cannot be read, or a line is not a JSON object in UTF-8; its number is named.
    """
    try:
        text = sys.stdin.read().encode("utf-8", "surrogateescape") if str(path) == "-" else path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: undecodable standard input, or a path with a zero byte
        raise DataError(f"{path}: cannot be read ({error}); give a UTF-8 file of JSON lines") from error
    for number, line in enumerate(BytesIO(text), start=1):
        if not line.removeprefix(BOM_UTF8).strip():
            continue
        try:
            row = _parse(line, strict=strict)
        except DataError as error:
            raise DataError(f"{path} line {number}: {error}") from error
        yield number, row


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines in one piece, on the disk when this returns; the folder is made where it is missing.

    RunFolderError: it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.writelines(_dump(row) for row in rows)
            file.flush()
            os.fsync(file.fileno())


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row, on the disk when this returns; a line that a killed process left unfinished is closed first.

    On a full disk nothing of the row stays, unless another process has appended since. RunFolderError: the file cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            data, end, written = _dump(row), file.seek(0, os.SEEK_END), 0
            if end:
                file.seek(-1, os.SEEK_END)
                data = data if file.read(1) == b"\n" else b"\n" + data
            try:
                while written < len(data):
                    written += file.write(data[written:]) or 0
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    if file.seek(0, os.SEEK_END) == end + written:  # else another's row would go, too; it closes this one
                        file.truncate(end)
                raise


def read_json(path: Path) -> Any:
    """What a JSON file holds; errors of the file system and of its contents pass through, for the caller to say what the file is for."""
    return json.loads(path.read_text(encoding="utf-8"))


def finite(value: Any) -> Any:
    """A value as JSON takes it, whatever is in it: None for NaN and infinity, keys as text, tuples as lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def _dump(row: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, as in file names that are not UTF-8: escaped, it is read back
        return json.dumps(row, allow_nan=False).encode() + b"\n"


def _lines(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Lines of at most `MAX_LINE` bytes, and whether more followed (which is skipped, never held in memory)."""
    while line := file.readline(MAX_LINE + 1):
        cut = len(line) > MAX_LINE
        rest = line
        while cut and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE)
            if not rest:
                break
        yield line, cut


def _parse(line: bytes, *, strict: bool) -> dict[str, Any]:
    hooks: dict[str, Any] = {"object_pairs_hook": no_twins, "parse_constant": no_constant} if strict else {}
    try:
        value = json.loads(line.decode("utf-8-sig"), **hooks)
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start + 1}; save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({error}); one object a line") from error
    if not isinstance(value, dict):
        raise DataError(f"a {type(value).__name__}, not a JSON object; one object a line")
    return value


def no_twins(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """A hook of `json.loads` that refuses, by DataError, a key that is given twice."""
    row = dict(items)
    if len(row) != len(items):
        keys = [key for key, _ in items]
        raise DataError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return row


def no_constant(name: str) -> NoReturn:
    """A hook of `json.loads` that refuses, by DataError, NaN and infinity."""
    raise DataError(f"{name} is no JSON number; use null")
