"""Pictures of rows, decoded once before a run: one that cannot be read would end it when its row's turn comes, hours later."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from portraitkit.errors import DataError, ImageError
from portraitkit.pictures.images import read_image
from portraitkit.vlm.processes import divided
from portraitkit.vlm.rows import Row


def set_aside_unreadable(
    rows: Mapping[str, Sequence[Row]], *, most: float, advance: Callable[[], object] = lambda: None
) -> tuple[dict[str, list[Row]], list[dict[str, str]]]:
    """The rows of each split whose pictures can be read, and the others as `{"row": where it stands, "reason": why}`.

    Args:
        rows: of each split; pictures that are no files are taken as they are.
        most: share of all rows that may be set aside.
        advance: called after each different file that this process decodes; several processes divide the files.

    Raises:
        DataError: more are unreadable, or a split is left without rows.
    """
    files = files_of(rows)
    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def look(some: Sequence[Path]) -> list[str]:
            found = []
            for reason in pool.map(_reason, some):
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


def _reason(path: Path) -> str:
    try:
        read_image(path)
    except ImageError as error:
        return str(error)
    return ""
