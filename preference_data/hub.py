"""Pair sets as Hugging Face data sets: parquet with Image features, and back."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portraitkit.errors import DataError
from portraitkit.files.atomic import replacing_folder
from preference_data.card import built_by, write_data_card
from preference_data.pair_set import read_pairs, write_pairs
from preference_data.schema import CHOICES, DIMENSIONS, FILES, SPLITS, TEXTS, Pair, pair_of, row_of

if TYPE_CHECKING:
    from datasets import DatasetDict, Features

PICTURES = tuple(FILES)


def pair_features() -> "Features":
    """The columns: pictures as Image features, verdicts and scores as structs, the rest as text."""
    from datasets import Features, Image, List, Value

    text, number = Value("string"), Value("float64")
    origin = {
        "generator": text,
        "faults": List({"kind": text, "strength": number}),
        "seed": Value("int64"),
        "model": text,
        "is_label": Value("bool"),
    }
    columns: dict[str, Any] = {"id": text} | {name: Image() for name in PICTURES}
    columns |= {"verdicts": dict.fromkeys(DIMENSIONS, text), "overall": text, "scores": {name: List(number) for name in DIMENSIONS}}
    columns |= dict.fromkeys(TEXTS, text)
    columns |= {"origin_a": origin, "origin_b": origin}
    columns |= dict.fromkeys(CHOICES, text)
    return Features(columns | {"synthetic": Value("bool")})


def save_parquet(folder: Path, out: Path) -> "DatasetDict":
    """Write a pair set as parquet into a new or empty folder, one file a split, pictures inside; `load_dataset(str(out))` reads it.

    Returns:
        The data set as `load_dataset` gives it.

    Raises:
        DataError: the pair set is malformed, or `out` holds files.
    """
    from datasets import Dataset, disable_progress_bars, load_dataset

    pairs = read_pairs(folder)
    disable_progress_bars()
    with _whole_folder(out) as new, tempfile.TemporaryDirectory() as cache:
        (new / "data").mkdir()
        for split in SPLITS:
            rows = [pair for pair in pairs if pair.split == split]
            if rows:
                split_rows = Dataset.from_generator(
                    _encoded,
                    gen_kwargs={"folder": str(folder), "rows": [row_of(pair) for pair in rows]},
                    features=pair_features(),
                    cache_dir=cache,
                )
                split_rows.to_parquet(new / "data" / f"{split}.parquet")
        write_data_card(new, pairs, built_by(folder))
    return load_dataset(str(out))


def load_parquet(source: str, out: Path) -> list[Pair]:
    """Write a set of `save_parquet`, by folder or hub id, as a new or empty folder with `metadata.jsonl`; pictures keep their bytes.

    Raises:
        DataError: there is no such data set, a column is missing or a row malformed, or `out` holds files; nothing is written then.
    """
    from datasets import Image, disable_progress_bars

    _check_free(out)
    disable_progress_bars()
    data = _load(source)
    pairs: list[Pair] = []
    with _whole_folder(out) as new:
        (new / "images").mkdir()
        for split in data:
            columns = set(data[split].column_names)
            missing = [name for name in pair_features() if name not in columns]
            if missing:
                raise DataError(f"{source}: column {missing[0]!r} is missing; a pair set has those of docs/preference_data.md")
            rows = data[split]
            for name in PICTURES:
                rows = rows.cast_column(name, Image(decode=False))
            for index, row in enumerate(rows):
                try:
                    pairs.append(_unpacked(row, split, new / "images", f"{split}-{index:06d}"))
                except DataError as error:
                    raise DataError(f"{source} {split} row {index + 1}: {error}") from error
        write_pairs(new, pairs)
    return pairs


def _load(source: str) -> Any:
    """A data set from a folder or the hub."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    if not Path(source).is_dir() and (Path(source).is_absolute() or source.startswith(".") or source.count("/") != 1):
        raise DataError(f"{source}: no such folder; give the folder of a parquet data set, or a hub id such as owner/name")
    try:
        return load_dataset(source)
    except (OSError, ValueError, DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{source}: no data set could be read ({reason}); give the folder of a parquet data set, or a hub id") from error


def _check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and is not empty; give another folder")


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` when the block ends well, and is gone if not; DataError where `out` cannot be written."""
    _check_free(out)
    try:
        with replacing_folder(out) as new:
            yield new
            _check_free(out)
    except OSError as error:
        raise DataError(f"{out}: could not be written ({error.strerror or error}); check the folder and the disk") from error


def _encoded(folder: str, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        item = {key: value for key, value in row.items() if key not in (*FILES.values(), "split")}
        for name, column in FILES.items():
            path = row[column]
            item[name] = {"path": Path(path).name, "bytes": (Path(folder) / path).read_bytes()} if path else None
        yield item


def _unpacked(row: dict[str, Any], split: str, images: Path, stem: str) -> Pair:
    values = {key: value for key, value in row.items() if key not in PICTURES}
    for name, column in FILES.items():
        picture = row[name]
        if picture is None:
            values[column] = None
            continue
        suffix = Path(picture["path"] or "x.png").suffix or ".png"
        target = images / f"{stem}-{name}{suffix}"
        target.write_bytes(picture["bytes"])
        values[column] = f"images/{target.name}"
    for key in ("verdicts", "scores"):  # a struct column has no null: all its fields are null instead
        if values[key] is not None and all(value is None for value in values[key].values()):
            values[key] = None
    return pair_of(values | {"split": split})
