"""Files that are whole or not there: what a killed process leaves behind is never half a file."""

import csv
import math
import os
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from portraitkit.errors import RunFolderError

UNFINISHED = re.compile(r"\..*\.\d+-\d+(\.\w+)?")
"""Names of the temporary files of `replacing` and `create`."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the file system refuses in this block is told as RunFolderError: the path could not be written."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(f"{path}: could not be written ({error.strerror}); check the folder and the disk") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it takes the place of `path` when the block ends well, and is gone if it does not.

    Errors of the file system pass through, for the caller to say what the file is for.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{threading.get_ident()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def clear_unfinished(folder: Path) -> None:
    """Remove the temporary files that a killed process left below a folder, in which nobody else may be writing."""
    for path in folder.rglob(".*"):
        if UNFINISHED.fullmatch(path.name) and path.is_file():
            path.unlink()


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: a new one beside `path`. A block that is left by `return` has ended well."""
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(folder: Path) -> None:
    """Try whether files can be made in a folder, or in the nearest one above it that is there; nothing stays. OSError: they cannot."""
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    with tempfile.TemporaryFile(dir=above):
        pass


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text in one piece; OSError: it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a CSV file in one piece: numbers with 8 digits, nothing for NaN and None; further keys of a row are left out.

    Text that a spreadsheet would run as a formula gets an apostrophe before it, which makes it text there.
    RunFolderError: it cannot be written.
    """
    with writing(path), replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(row[column]) for column in columns] for row in rows)


def _cell(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.8g}" if math.isfinite(value) else ""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value


def create(path: Path, text: str) -> bool:
    """Create a file with its text in one step; False where it is there already, whoever was first. OSError: it cannot be written."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}-{threading.get_ident()}")
    temporary.write_text(text, encoding="utf-8")
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True
