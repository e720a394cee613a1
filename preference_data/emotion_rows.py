"""Rows of facial emotion data: the JSONL format that Facial-R1 published, read strictly and written; and the names that rows use.

One object a line: `id` (unique), `dataset`, `image` (a path relative to an image folder), `question`, `AUs` (a list such as
["AU1", "AU4"]; null where the data set labels none), `labels` (one emotion as a lower-case noun, or an empty list), `description`,
`meta_info` (an object), and optionally `target`, the completion to imitate. Names of action units are those of the Facial Action
Coding System (Ekman and Friesen); what they look like is in our words.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from portraitkit.errors import DataError, nearest
from portraitkit.files.jsonl import read_objects
from preference_data.schema import text_of

TABLES = tomllib.loads(Path(__file__).with_name("emotions.toml").read_text(encoding="utf-8"))
DEFINITIONS: dict[int, tuple[str, str]] = {int(number): (name, seen) for number, (name, seen) in TABLES["definitions"].items()}
"""The 30 action units that the prompt defines: number -> (FACS name, what is seen)."""
ACTION_UNITS = {number: name for number, (name, _) in DEFINITIONS.items()}  # FACS names alone
AU_LISTS: dict[str, tuple[int, ...]] = {"all": tuple(DEFINITIONS)} | {name: tuple(units) for name, units in TABLES["au_lists"].items()}
"""Units that an evaluation scores, by name: the prompt's, and those of the sources that emotions.toml names."""
SYNONYMS: dict[str, tuple[str, ...]] = {noun: tuple(words) for noun, words in TABLES["emotions"].items()}
EMOTIONS = tuple(SYNONYMS)
_NOUNS = {word: noun for noun, words in SYNONYMS.items() for word in (noun, *words)}


def normalise_label(word: str) -> str:
    """The lower-case noun of an emotion, as in "Angry" -> "anger"; DataError for none of the eight or a common word for one."""
    noun = _NOUNS.get(word.strip().lower())
    if noun is None:
        raise DataError(f"label {word!r}: unknown emotion{nearest(word.strip().lower(), _NOUNS)}; use {', '.join(EMOTIONS)}")
    return noun


QUESTION = "Which emotion does this face show, and which facial action units show it?"
EMOTION_ONLY = ("fer2013", "affectnet", "raf-db", "expw")
"""Data sets without action units: the empty lists that published files give for them mean "not labelled"."""


@dataclass(frozen=True)
class EmotionRow:
    """One row; see the top of this module."""

    id: str  # unique in its file
    dataset: str  # where it comes from
    image: str  # path relative to an image folder, with forward slashes
    question: str = QUESTION  # asked about the picture
    AUs: tuple[str, ...] | None = None  # names of action units in ascending order; None where they are not labelled
    labels: tuple[str, ...] = ()  # one emotion, or none
    description: str = ""  # what a person or a model wrote about the expression; may be empty
    meta_info: Mapping[str, Any] = field(default_factory=dict)  # anything else, by name
    target: str | None = None  # completion to imitate, or None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `target` only where there is one."""
        row = asdict(self)
        if self.target is None:
            del row["target"]
        return row


FIELDS = tuple(EmotionRow.__dataclass_fields__)
REQUIRED = ("id", "dataset", "image", "AUs", "labels")


def parse_row(row: Any) -> EmotionRow:
    """One object of a file to a row; emotions become nouns, units are sorted. DataError for one unlike the top of this module."""
    if not isinstance(row, dict):
        raise DataError(f"{type(row).__name__}: must be a JSON object")
    if (name := next((name for name in row if name not in FIELDS), None)) is not None:
        raise DataError(f"column {name!r}: unknown{nearest(name, FIELDS)}; use {', '.join(FIELDS)}")
    if (name := next((name for name in REQUIRED if name not in row), None)) is not None:
        raise DataError(f"column {name!r} is missing; a row needs {', '.join(REQUIRED)}")
    meta = row.get("meta_info")
    if meta is not None and not isinstance(meta, dict):
        raise DataError(f"meta_info {meta!r}: must be an object")
    path = PurePosixPath(text_of(row, "image").replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise DataError(f"image {row['image']!r}: must be a path inside the image folder, relative to it")
    units, labels = parse_truth(row)
    return EmotionRow(
        id=text_of(row, "id"),
        dataset=text_of(row, "dataset"),
        image=str(path),
        question=text_of(row, "question", "") or QUESTION,
        AUs=units,
        labels=labels,
        description=text_of(row, "description", ""),
        meta_info=meta or {},
        target=None if row.get("target") is None else text_of(row, "target", ""),
    )


def parse_truth(row: Mapping[str, Any]) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The columns `AUs` and `labels` of a row, as `EmotionRow` holds them; a column that is missing or null labels nothing.

    `dataset` is looked at only where `AUs` is empty, which means "not labelled" in the data sets of `EMOTION_ONLY`.

    Raises:
        DataError: a unit or an emotion is none, or not given as a list.
    """
    units, labels = _units(row.get("AUs")), row.get("labels") if row.get("labels") is not None else []
    if units == () and str(row.get("dataset")).lower() in EMOTION_ONLY:
        units = None
    if not isinstance(labels, list) or len(labels) > 1 or not all(isinstance(label, str) for label in labels):
        raise DataError(f'labels {labels!r}: must be a list of one emotion such as ["sadness"], or empty')
    return units, tuple(map(normalise_label, labels))


def unknown_units(row: Mapping[str, Any]) -> frozenset[int]:
    """The units that nobody coded on a row, which are neither present nor absent: those of `meta_info.unknown`, and where the data set is
    DISFA or BP4D, those that its coders do not code at all. What `AUs` lists is known.

    Raises:
        DataError: `meta_info.unknown` is no list of units, or names one that `AUs` lists.
    """
    present = parse_truth(row)[0]
    if present is None:
        return frozenset()
    dataset, meta = str(row.get("dataset")).lower(), row.get("meta_info")
    named = meta.get("unknown") if isinstance(meta, Mapping) else None
    digits = [str(unit).removeprefix("AU") for unit in named] if isinstance(named, list) else []
    if named is not None and (not isinstance(named, list) or not all(number.isdecimal() for number in digits)):
        raise DataError(f'meta_info.unknown {named!r}: must be a list such as ["AU6", "AU12"]')
    if both := next((f"AU{number}" for number in digits if f"AU{number}" in present), None):
        raise DataError(f"meta_info.unknown names {both}, which AUs lists as present; keep one of the two")
    uncoded = set(ACTION_UNITS) - set(AU_LISTS[dataset]) if dataset in ("disfa", "bp4d") else set[int]()
    return frozenset({*map(int, digits), *(unit for unit in uncoded if f"AU{unit}" not in present)})


def read_emotion_rows(path: Path) -> list[EmotionRow]:
    """Every row of a file; DataError, with the line's number, for one that breaks the format or an id that comes twice."""
    rows: list[EmotionRow] = []
    seen: dict[str, int] = {}
    for number, columns in read_objects(path, strict=True):
        where = f"{path} line {number}"
        try:
            row = parse_row(columns)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        if row.id in seen:
            raise DataError(f"{where}: id {row.id!r} stands in line {seen[row.id]}, too; ids must be unique")
        seen[row.id] = number
        rows.append(row)
    if not rows:
        raise DataError(f"{path}: holds no rows; one JSON object a line")
    return rows


def unit_names(numbers: Iterable[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names in ascending order of the units that the prompt defines, and of the others."""
    ordered = sorted(set(numbers))
    known = tuple(f"AU{number}" for number in ordered if number in ACTION_UNITS)
    return known, tuple(f"AU{number}" for number in ordered if number not in ACTION_UNITS)


def _units(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise DataError(f'AUs {value!r}: must be a list such as ["AU4", "AU15"], or null where none are labelled')
    numbers = []
    for name in value:
        digits = name.removeprefix("AU") if isinstance(name, str) and name.startswith("AU") else ""
        if not digits.isdecimal() or int(digits) not in ACTION_UNITS:
            raise DataError(f"AUs item {name!r}: must be one of {', '.join(f'AU{number}' for number in ACTION_UNITS)}")
        numbers.append(int(digits))
    return unit_names(numbers)[0]
