"""Pair sets as Hugging Face data sets: parquet with Image features and a card, and back."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portraitkit.errors import DataError
from portraitkit.files.atomic import replacing_folder
from portraitkit.report.card import Table, counted, write_readme
from portraitkit.runs.folder import versions_of
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


# ---- the data card: where pictures come from, who agreed to what, who judged, who is shown, what made the candidates

BUILT = "build.json"  # What `make-preferences build` leaves beside a set about how it was made
PACKAGES = ("portraitkit", "diffusers", "transformers", "torch")
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
HUB_LICENCES = {
    "apache-2.0",
    "mit",
    "cc0-1.0",
    "openrail",
    *(f"cc-{terms}-4.0" for terms in ("by", "by-sa", "by-nc", "by-nc-sa", "by-nc-nd")),
}


def build_record(options: Mapping[str, Any], synthetic: bool) -> dict[str, Any]:
    """What made a set: generators with their options, and the versions of what they run on. No path of the photos."""
    kept = ("generators", "prompt", "num_steps", "seed", "resolution", "candidates", "pairs_per_photo", "against_label")
    return {
        "photos": "embedded" if synthetic else "a folder",
        "options": {name: options[name] for name in kept if name in options},
        "versions": {name: found for name, found in versions_of(PACKAGES).items() if found},
    }


def built_by(folder: Path) -> dict[str, Any]:
    """What `build` recorded in a pair set's folder; nothing where it did not, or where it cannot be read."""
    try:
        found = json.loads((folder / BUILT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_data_card(folder: Path, pairs: Sequence[Pair], record: Mapping[str, Any]) -> Path:
    """Write `README.md` of a parquet data set of at least one pair; `record` is that of `built_by`. Returns its path."""
    from huggingface_hub import DatasetCardData

    splits = Counter(pair.split for pair in pairs)
    files = [{"split": split, "path": f"data/{split}.parquet"} for split in SPLITS if split in splits]
    licences = {pair.licence for pair in pairs}
    only = licences.pop().lower() if len(licences) == 1 else "other"
    synthetic, people = sum(pair.synthetic for pair in pairs), len({pair.identity for pair in pairs if pair.identity})
    metadata = DatasetCardData(
        configs=[{"config_name": "default", "data_files": files}],
        license=only if only in HUB_LICENCES else "other" if only else "unknown",
        pretty_name="Preference pairs of portrait retouches",
        size_categories=next((name for most, name in SIZES if len(pairs) < most), "n>1M"),
        task_categories=["image-text-to-text", "image-to-image"],
        annotations_creators=["machine-generated"] if all(pair.annotator in ("degradation", "verifiable") for pair in pairs) else ["other"],
        tags=["portraitkit", "preference", *(["synthetic"] if synthetic else [])],
    )
    counts = [
        ("photos come from", counted(pair.source for pair in pairs)),
        ("licence of the photo", counted(pair.licence for pair in pairs)),
        ("consent of the person", counted(pair.consent for pair in pairs)),
        ("judged by", counted((pair.annotator for pair in pairs if pair.overall is not None), nothing="not named") or "nobody"),
        ("not judged", sum(pair.overall is None for pair in pairs)),
    ]
    groups = [(name.replace("_", " "), counted(str(getattr(pair, name) or "") for pair in pairs)) for name in CHOICES]
    known, built = any(getattr(pair, name) for pair in pairs for name in CHOICES), _record_lines(record)
    return write_readme(
        folder,
        metadata,
        Path(__file__).with_name("card.md.j2"),
        pairs=pairs,
        people=people,
        synthetic=synthetic,
        splits=", ".join(f"{split.replace('_', '-')} {count}" for split, count in splits.items()),
        counts=Table("", ("", "pairs"), counts),
        without=sum(not pair.consent for pair in pairs if not pair.synthetic),
        groups=Table("", ("", "pairs"), groups) if known else None,
        generators=_generators(pairs),
        built=Table("", ("built with", ""), built) if built else None,
    )


def _generators(pairs: Sequence[Pair]) -> Table:
    """Each generator and model, how many candidates it made, and how many of them are distinct in seed or faults."""
    counts: Counter[tuple[str, str]] = Counter()
    faults: dict[tuple[str, str], set[str]] = {}
    for origin in (origin for pair in pairs for origin in (pair.origin_a, pair.origin_b)):
        key = origin.generator, _short(origin.model)
        counts[key] += 1
        faults.setdefault(key, set()).update(fault.kind for fault in origin.faults)
    rows = [(name, model or None, count, len(faults[name, model])) for (name, model), count in counts.most_common()]
    return Table("", ("generator", "model", "times in a pair", "kinds of known faults"), rows)


def _short(model: str | None) -> str:
    """A hub id as it is; of a path on somebody's machine its name only."""
    if not model:
        return ""
    return Path(model).name if Path(model).is_absolute() or model.count("/") > 1 else model


def _record_lines(record: Mapping[str, Any]) -> list[tuple[str, object]]:
    options, versions = record.get("options"), record.get("versions")
    options = dict(options) if isinstance(options, Mapping) else {}
    if isinstance(generators := options.get("generators"), list):
        options["generators"] = [_generator(str(name)) for name in generators]
    lines = [("versions", [f"{name} {value}" for name, value in versions.items()])] if isinstance(versions, Mapping) and versions else []
    return [*lines, *((name.replace("_", " "), value) for name, value in options.items())]


def _generator(name: str) -> str:
    """A generator as it was named, without the folders of somebody's machine."""
    kind, colon, where = name.partition(":")
    return f"{kind}:{_short(where)}" if colon and not kind.endswith(".py") else f"{Path(kind).name}{colon}{where}"
