"""Groups of the people on the photos, from an ImageFolder's metadata.jsonl."""

from collections.abc import Iterable
from pathlib import Path

from portraitkit.errors import DataError
from portraitkit.files.jsonl import read_objects


def read_groups(given: Path | None, folders: Iterable[Path], columns: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """File name without suffix -> column -> value; nothing where no folder has a metadata.jsonl.

    Args:
        given: the file, or None to take the first folder's that has one.
        folders: searched in this order.
        columns: read from each row; those that are missing or null are left out.

    Raises:
        DataError: a row is no JSON object with a text file_name, a value is neither text nor number, or a name comes twice;
            the line's number is named.
    """
    path = given or next((file for folder in folders if (file := folder / "metadata.jsonl").is_file()), None)
    if path is None:
        return {}
    out: dict[str, dict[str, str]] = {}
    for number, row in read_objects(path):
        where = f"{path} line {number}"
        if not isinstance(row.get("file_name"), str):
            raise DataError(f"{where}: needs a text file_name")
        name = Path(row["file_name"]).stem
        if name in out:
            raise DataError(f"{where}: {name} was described before; keep one row a photo")
        values = {column: row[column] for column in columns if row.get(column) is not None}
        for column, value in values.items():
            if not isinstance(value, str | int) or isinstance(value, bool):
                raise DataError(f"{where}: {column} {value!r}: must be text or a whole number")
        out[name] = {column: str(value) for column, value in values.items()}
    return {name: values for name, values in out.items() if values}
