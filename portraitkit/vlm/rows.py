"""Rows of a task: pictures with their truth, made or read from JSON lines; rows whose pictures cannot be decoded are set aside."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from portraitkit.errors import DataError, ImageError
from portraitkit.files.jsonl import read_objects
from portraitkit.parallel import divided
from portraitkit.pictures.images import read_image, to_pil
from portraitkit.vlm.task import Task

SPLITS = ("train", "validation", "held_out")
STRIDE = 1_000_000_007  # so that the rows of neighbouring seeds do not overlap
FRESH = 1_000_000  # The embedded models were taught on rows of smaller seeds; what trains on from them draws rows that they have not seen


@dataclass(frozen=True)
class Row:
    """One example."""

    # shown before the prompt, in this order: RGB in [0, 1], or the files that hold them
    pictures: tuple[Float[Tensor, "3 h w"] | Path, ...]
    truth: Any  # what `Task.read_truth` made of the columns
    target: str  # the completion to imitate; empty where the row has none and its truth leaves a part of the answer open
    columns: Mapping[str, Any]  # everything else the row says, for tables by group
    name: str = ""  # where it stands, for messages; empty where nobody said

    def images(self) -> list[Image.Image]:
        """The pictures as Pillow has them, 8 bits."""
        return [to_pil(read_image(picture).pixels if isinstance(picture, Path) else picture) for picture in self.pictures]


def make_rows(task: Task, split: str, count: int, seed: int, *, advance: Callable[[], object] = lambda: None) -> list[Row]:
    """Rows of the task's embedded data, its `make_row`'s. Those of other seeds are other rows, but held-out rows are the same for all;
    `advance` is called after each row. DataError: the task has no data of its own."""
    if task.make_row is None:
        raise DataError(f"task {task.name}: has no data of its own; give --data FOLDER with train.jsonl and test.jsonl")
    first = first_row(split, seed)
    rows = []
    for index in range(count):
        made = dict(task.make_row(split, (first + index) % 2**31))
        rows.append(_row(task, tuple(made.pop("images", None) or [made.pop("image")]), made, f"{split} row {index + 1}"))
        advance()
    return rows


def first_row(split: str, seed: int) -> int:
    """The seed of the first embedded row of a run: those of the held-out split are the same for all runs, the others see `FRESH`."""
    return 0 if split == "held_out" else seed * STRIDE + FRESH


def read_rows(path: Path, task: Task) -> list[Row]:
    """Rows of a JSONL file: `image` or `images` (paths beside the file), the task's columns, and optionally `target`.

    Raises:
        DataError: the file cannot be read, or a row breaks the schema, names no picture or not as many as the others; its number
            is named.
    """
    rows = []
    for number, columns in read_objects(path, strict=True):
        where = f"{path} line {number}"
        names = columns.pop("images", None) or [columns.pop("image", None)]
        if not isinstance(names, list):
            raise DataError(f'{where}: images {names!r:.80}: must be a list of files, such as ["photo.png", "a.png"]')
        for name in names:
            check_picture(path, name, where)
        if rows and len(names) != len(rows[0].pictures):
            raise DataError(f"{where}: {len(names)} pictures where the first row has {len(rows[0].pictures)}: all rows show as many")
        try:
            rows.append(_row(task, tuple(path.parent / name for name in names), columns, where))
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
    if not rows:
        raise DataError(f"{path}: holds no rows; one JSON object a line")
    return rows


def check_picture(path: Path, name: object, where: str) -> None:
    """A picture lies below the folder of its rows' file; links in the folder are the user's own, as make-preferences emotion makes them.

    Raises:
        DataError: it does not, or is not there; the message begins with `where`.
    """
    if isinstance(name, str) and (Path(name).is_absolute() or ".." in Path(name).parts):
        raise DataError(f"{where}: image {name!r}: leaves the folder of {path.name}; copy or link it into it")
    try:
        there = isinstance(name, str) and (path.parent / name).is_file()
    except (OSError, ValueError):  # a name too long for the file system, or with a zero byte
        there = False
    if not there:
        raise DataError(f"{where}: image {name!r:.80}: must name a file beside {path.name}")


def open_rows(task: Task, data: str, counts: Mapping[str, int], seed: int) -> dict[str, list[Row]]:
    """The three splits, from the task's own data (`embedded`, see `make_rows`) or from a folder of the user's.

    A folder holds train.jsonl, test.jsonl (or held_out.jsonl) and optionally validation.jsonl. The held-out rows are the first ones of
    their file; without a validation file, the last rows of train.jsonl are set aside for it. `counts` are the most rows of each split; 0
    takes all that a folder has. DataError: see `make_rows` and `read_rows`; or a split is empty.
    """
    if data == "embedded":
        return {split: make_rows(task, split, counts[split], seed) for split in SPLITS}
    folder = Path(data)
    files = {split: next((path for name in names if (path := folder / name).is_file()), None) for split, names in FILES.items()}
    for split in ("train", "held_out"):
        if files[split] is None:
            raise DataError(f"{folder}: has no {' or '.join(FILES[split])}; rows of one person must stand in one file only")
    rows = {split: read_rows(path, task) if path else [] for split, path in files.items()}
    if not rows["validation"]:
        aside = min(counts["validation"], len(rows["train"]) // 5)
        rows["validation"], rows["train"] = rows["train"][-aside:] if aside else [], rows["train"][: len(rows["train"]) - aside]
    for split in SPLITS:
        rows[split] = rows[split][: counts[split] or None]
        if not rows[split]:
            raise DataError(f"{folder}: no rows are left for the {split} split; give at least 5 rows in train.jsonl")
    return rows


FILES = {"train": ("train.jsonl",), "validation": ("validation.jsonl",), "held_out": ("test.jsonl", "held_out.jsonl")}


def _row(task: Task, pictures: tuple[Any, ...], columns: dict[str, Any], name: str) -> Row:
    target = columns.pop("target", None)
    truth = task.read_truth(columns)
    perfect = task.perfect(truth) if task.whole is None or task.whole(truth) else ""
    return Row(pictures, truth, target if isinstance(target, str) else perfect, columns, name)


def imitable(rows: Sequence[Row]) -> list[Row]:
    """The rows with a target; DataError: none has."""
    if not (found := [row for row in rows if row.target]):
        raise DataError(
            f"{rows[0].name}: labels only a part of what an answer says, as does every training row, so that sft would teach what nobody "
            "labelled; give rows a target, or leave sft out of --stages"
        )
    return found


def messages(prompt: str, target: str | None = None, *, pictures: int = 1) -> list[dict[str, Any]]:
    """One user turn with the pictures before the prompt, and the assistant's answer if given, as chat templates take them."""
    turns: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "image"}] * pictures + [{"type": "text", "text": prompt}]}]
    if target is not None:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": target}]})
    return turns


def shuffled(rows: Sequence[Row]) -> list[Row]:
    """The rows with each one's pictures taken from one half the list away: what a policy earns that does not look."""
    half = max(len(rows) // 2, 1)
    return [replace(row, pictures=other.pictures) for row, other in zip(rows, [*rows[half:], *rows[:half]], strict=True)]


def set_aside_unreadable(
    rows: Mapping[str, Sequence[Row]], *, most: float, advance: Callable[[], object] = lambda: None
) -> tuple[dict[str, list[Row]], list[dict[str, str]]]:
    """The rows of each split whose pictures can be read, and the others as `{"row": where it stands, "reason": why}`.

    Pictures that are no files are taken as they are. Several processes divide the files; `advance` is called after each different one that
    this process decodes. DataError: more than the share `most` of all rows are unreadable, or a split is left without rows.
    """
    files = files_of(rows)
    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def look(some: Sequence[Path]) -> list[str]:
            found = []
            for reason in pool.map(why_unreadable, some):
                advance()
                found.append(reason)
            return found

        reasons = {path: reason for path, reason in zip(files, divided(files, look), strict=True) if reason}
    kept: dict[str, list[Row]] = {}
    aside: list[dict[str, str]] = []
    for split, some in rows.items():
        kept[split] = []
        for row in some:
            bad = next((reasons[picture] for picture in row.pictures if isinstance(picture, Path) and picture in reasons), None)
            if bad is None:
                kept[split].append(row)
            else:
                aside.append({"row": row.name, "reason": bad})
    total = sum(map(len, rows.values()))
    if len(aside) > most * total:
        first = f"{aside[0]['row']}: {aside[0]['reason']}"
        raise DataError(
            f"{len(aside)} of {total} rows have a picture that cannot be read, more than --max-unusable {most:g} allows; the first: {first}"
        )
    for split, some in kept.items():
        if not some and rows[split]:
            raise DataError(f"no row of the {split} split has a picture that can be read, the first: {aside[0]['reason']}")
    return kept, aside


def files_of(rows: Mapping[str, Sequence[Row]]) -> list[Path]:
    """The different picture files of all splits, sorted."""
    return sorted({picture for some in rows.values() for row in some for picture in row.pictures if isinstance(picture, Path)})


def why_unreadable(path: Path) -> str:
    """Why a picture cannot be decoded; empty if it can."""
    try:
        read_image(path)
    except ImageError as error:
        return str(error)
    return ""
