"""Pair sets and photo folders on disk: `metadata.jsonl` and pictures, none of which is opened. Bad rows are set aside, with the reason."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from portraitkit.errors import DataError
from portraitkit.files.jsonl import Rejected, RowSet, read_json_lines, write_lines
from portraitkit.pictures import list_images, matched_name, not_a_file
from preference_data.schema import CHOICES, FILES, SPLITS, Pair, choice_of, pair_of, row_of, text_of

METADATA = "metadata.jsonl"
QUARANTINE = "quarantine.jsonl"
PHOTO_COLUMNS = ("file_name", "anchor_file_name", "split", "identity", "consent", "licence", "source", *CHOICES)


def read_pairs(folder: Path) -> list[Pair]:
    """The pairs of a folder, checked row by row; bad rows are written to its `quarantine.jsonl`. `scan_pairs` leaves them out.

    Raises:
        DataError: no such file, nothing in it, or a bad row; the first is named.
    """
    row_set = scan_pairs(folder)
    write_quarantine(folder, row_set.rejected)
    if row_set.rejected:
        first, *others = row_set.rejected
        more = f" (and {len(others)} more rows, see {QUARANTINE})" if others else ""
        raise DataError(f"{folder / METADATA} line {first.line}: {first.reason}{more}")
    if not row_set.rows:
        raise DataError(f"{folder / METADATA}: holds no row; make pairs with make-preferences build")
    return row_set.rows


def scan_pairs(folder: Path) -> RowSet[Pair]:
    """All pairs of a folder and all bad rows, without writing anything; pictures are looked for, not opened. DataError for no such file."""
    path = metadata_of(folder, f"a pair set is a folder with {METADATA} and pictures, see docs/preference_data.md")
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


def metadata_of(folder: Path, needed: str) -> Path:
    """The `metadata.jsonl` of a folder; DataError says what the folder must be (`needed`)."""
    if folder.is_file():
        raise DataError(f"{folder}: is a file; give the folder that it is in")
    if not (folder / METADATA).is_file():
        raise DataError(f"{folder / METADATA}: no such file; {needed}")
    return folder / METADATA


def check_inside(root: Path, name: str, column: str) -> Path:
    """The file `name` below `root`, its last part in whichever Unicode form the disk has it.

    Raises:
        DataError: an address, a path that leaves the folder (by .., a symlink or a root), or no such file.
    """
    shown = repr(name[:80])
    if "://" in name or name.startswith("data:"):
        raise DataError(f"{column} {shown}: is an address; pictures are files below the data folder, nothing is fetched")
    try:
        resolved = (root / name).resolve()
        inside, exists = resolved.is_relative_to(root), resolved.is_file()
    except (OSError, ValueError) as error:  # too long, or with a zero byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{column} {shown}: is no file name ({reason})") from error
    if not inside:
        raise DataError(f"{column} {shown}: leaves the data folder; use paths below it")
    if not exists:
        near = resolved.parent.iterdir() if resolved.parent.is_dir() else ()
        twin = next((path for path in near if matched_name(path.name) == matched_name(resolved.name)), None)
        if twin is None or not twin.is_file() or not twin.resolve().is_relative_to(root):
            raise DataError(f"{column} {shown}: {not_a_file(resolved)} in the data folder")
        return twin
    return resolved


def holds_pairs(folder: Path) -> bool:
    """Whether a folder's `metadata.jsonl` has a row of a pair: folders of photos and other data sets have such a file, too."""
    path = folder / METADATA
    return path.is_file() and any(read_json_lines(path, lambda row: "input_file_name" in row).rows)


def write_pairs(folder: Path, pairs: Iterable[Pair]) -> None:
    """Write `metadata.jsonl` in one piece; the pictures must be there already."""
    write_lines(folder / METADATA, (row_of(pair) for pair in pairs))


def write_quarantine(folder: Path, rejected: list[Rejected]) -> None:
    """Write the bad rows beside the data, or remove an old quarantine where there are none."""
    if rejected:
        write_lines(folder / QUARANTINE, (vars(row) for row in rejected))
    else:
        (folder / QUARANTINE).unlink(missing_ok=True)


def list_photos(folder: Path) -> RowSet[dict[str, Any]]:
    """The photos of a folder, and the rows that cannot be used. Without `metadata.jsonl` every picture in it is a photo.

    Raises:
        DataError: no such folder, or no photos in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give a folder of photos, or embedded")
    if not (folder / METADATA).is_file():
        rows = [{"file_name": path.name} for path in list_images(folder, flat=True)]
        if not rows:
            raise DataError(f"{folder}: holds no photos (and no {METADATA})")
        return RowSet(rows, list(range(1, len(rows) + 1)), [])
    root, seen = folder.resolve(), set()

    def read(row: dict[str, Any]) -> dict[str, Any]:
        read_photo_row(row, root)
        if (file := (root / row["file_name"]).resolve()) in seen:
            raise DataError(f"file_name {row['file_name']!r}: named by an earlier row")
        seen.add(file)
        return row

    return read_json_lines(folder / METADATA, read)


def read_photo_row(row: dict[str, Any], root: Path) -> dict[str, Any]:
    """Check a row of a photo folder's `metadata.jsonl`, the folder resolved to `root`; other columns are ignored.

    Raises:
        DataError: a column of ours has an impossible value, or a file is missing or outside the folder.
    """
    text_of(row, "file_name")
    for key in PHOTO_COLUMNS:
        text_of(row, key, "")
    for key, choices in (*CHOICES.items(), ("split", SPLITS)):
        if row.get(key) is not None:
            choice_of(key, row[key], choices)
    for key in ("file_name", "anchor_file_name"):
        if row.get(key) is not None:
            found = check_inside(root, row[key], key)
            row[key] = row[key] if (root / row[key]).exists() else found.relative_to(root).as_posix()
    return row
