"""Readers of published data sets in their original folder layouts: one file a data set, each exporting `ADAPTER`."""

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from portraitkit.errors import DataError

if TYPE_CHECKING:
    from numpy import ndarray

    from preference_data.emotion_rows import EmotionRow

MODULES = ("disfa", "bp4d", "raf_au", "faba", "fer2013", "affectnet", "raf_db", "expw")
BUILT_IN = {name.replace("_", "-"): f"preference_data.sources.{name}:ADAPTER" for name in MODULES}
BUILT_IN["jsonl"] = "preference_data.sources.published_jsonl:ADAPTER"
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Record:
    """One labelled face of a data set."""

    key: str  # unique in the data set, stable; the row's id is `dataset-key`
    # the file that holds it, or a function that makes its pixels: uint8, RGB, h x w x 3; ImageError where it cannot
    picture: "Path | Callable[[], ndarray]"
    units: frozenset[int] | None = None  # numbers of the action units that are present; None where the data set labels none
    emotion: str | None = None  # as the data set writes it; None where there is none
    split: Split | None = None  # the official one, or None
    subject: str = ""  # the person shown, or whatever else must stay in one split; the key if empty
    description: str = ""  # text about the expression
    meta: Mapping[str, Any] = field(default_factory=dict)  # further columns
    row: "EmotionRow | None" = None  # where the data set is of rows already: this one, but for its picture; units, emotion ... do not count


@dataclass(frozen=True)
class ReadOptions:
    """What the user may choose."""

    every: int = 1  # take every n-th frame of a video
    min_intensity: int = 2  # action units count as present from this intensity on, 1 to 5, where intensities are labelled
    note: Callable[[str], object] = lambda text: None  # told in a line what is left out without a record of its own


@dataclass(frozen=True)
class Adapter:
    """A data set."""

    name: str  # as rows carry it
    layout: str  # what the folder must hold, for messages
    # (folder, options) -> records, lazily; raises DataError with file and line where the folder breaks the layout
    read: Callable[[Path, ReadOptions], Iterator[Record]]
    skipped: Mapping[str, str] = field(default_factory=dict)  # labels that are no emotion, by the reason for which their rows are set aside


def load_adapter(name: str) -> Adapter:
    """Load an adapter by built-in name or as `my_file.py:ADAPTER`; ConfigError where there is none."""
    from portraitkit.discover import load_known

    return load_known(name, BUILT_IN, Adapter, "DATASET")


def read_table(path: Path, columns: int, separator: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """Lines of a text file as fields, with where they stand; blank lines are skipped.

    Raises:
        DataError: the file cannot be read, or a line has another number of fields.
    """
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            fields = [part.strip() for part in line.split(separator)]
            if len(fields) != columns:
                raise DataError(f"{path} line {number}: has {len(fields)} fields; {columns} are expected")
            yield f"{path} line {number}", fields


def read_csv(path: Path, *needed: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a CSV file by the names in its header, which must have those `needed` and may have others, with where they stand; blank lines
    are skipped.

    Raises:
        DataError: the file cannot be read, the header lacks a name or has one twice, or a row has not as many fields as the header.
    """
    reader = csv.reader(_lines(path))
    try:
        header = [name.strip() for name in next(reader, [])]
        for name in needed:
            if name not in header:
                raise DataError(f"{path} line 1: has no column {name}; the header must name {', '.join(needed)}")
        if len(set(header)) != len(header):
            raise DataError(f"{path} line 1: names a column twice")
        for fields in filter(None, reader):
            where = f"{path} line {reader.line_num}"
            if len(fields) != len(header):
                raise DataError(f"{where}: has {len(fields)} fields; the header names {len(header)}")
            yield where, {name: field.strip() for name, field in zip(header, fields, strict=True)}
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: is no CSV ({error})") from error


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file in UTF-8, one at a time; a byte order mark is dropped."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(f"{path} line {number}: not UTF-8 at byte {error.start + 1}; save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def finite(where: str, **texts: str) -> dict[str, float]:
    """Texts that must be finite numbers, by name; DataError where one is not."""
    try:
        numbers = {name: float(text) for name, text in texts.items()}
    except ValueError as error:
        raise DataError(f"{where}: {' and '.join(texts)} must be numbers ({error})") from error
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise DataError(f"{where}: {name} {texts[name]!r} must be a finite number")
    return numbers


def coded(where: str, codes: Mapping[str, str], code: str) -> str:
    """The emotion of a data set's code; DataError for no such code."""
    if code not in codes:
        raise DataError(f"{where}: code {code!r} is none of {', '.join(codes)}")
    return codes[code]


def some_of(numbers: Iterable[int]) -> str:
    """Numbers for a message: how many, and the first ones."""
    ordered = sorted(numbers)
    return f"{len(ordered)} ({', '.join(map(str, ordered[:3]))}{', ..' if ordered[3:] else ''})"


def first_file(*paths: Path) -> Path:
    """The first of several places of a picture where there is a file; the first place where there is none."""
    return next((path for path in paths if path.is_file()), paths[0])


def find(folder: Path, adapter_layout: str, *names: str) -> Path:
    """The first of some paths in the folder that exists; DataError says what the folder should hold."""
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise DataError(f"{folder}: has no {' or '.join(names)}; the folder must hold {adapter_layout}")
