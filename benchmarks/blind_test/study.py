"""A study on disk: what `make` wrote and `serve`, `report` and `export` read. Loads neither torch nor numpy."""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from portraitkit.errors import RunFolderError

FILE, VOTES, CONSENT, PICTURES = "study.json", "votes.sqlite", "consent.txt", "pictures"
VERSION = 1


@dataclass(frozen=True)
class Photo:
    """One photo in all its versions; versions are known by opaque tokens, the names of their files without suffix.

    Attributes:
        name: of the photo; never sent to a browser.
        versions: method -> token.
        original: token of the untouched picture that attention checks show; the reference, or the first method's picture.
        spoiled: token of the plainly bad copy of it.
        reference: token of the picture shown while a key is held, or None.
        groups: column -> value, such as {"gender": "female"}.
    """

    name: str
    versions: dict[str, str]
    original: str
    spoiled: str
    reference: str | None
    groups: dict[str, str]


@dataclass(frozen=True)
class Study:
    """What is shown to whom, without any vote."""

    folder: Path
    title: str
    question: str
    methods: tuple[str, ...]
    photos: tuple[Photo, ...]
    photos_per_rater: int
    attention_checks: int
    image_format: str
    seed: int

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """All pairs of methods, in the order of `methods`."""
        return list(combinations(self.methods, 2))

    @cached_property
    def pictures(self) -> dict[str, Path]:
        """Token -> file. Only what is in here is ever served: a request never becomes a path, and no token reaches a browser."""
        tokens = [
            token
            for photo in self.photos
            for token in (*photo.versions.values(), photo.original, photo.spoiled, photo.reference)
            if token is not None
        ]
        return {token: self.folder / PICTURES / f"{token}.{self.image_format}" for token in tokens}

    def shown(self, photo: int, pair: int, swapped: bool) -> tuple[str, str]:
        """Tokens of the pictures at the left and at the right of a comparison; of an attention check for a negative pair."""
        what = self.photos[photo]
        first, second = (what.original, what.spoiled) if pair < 0 else (what.versions[method] for method in self.pairs[pair])
        return (second, first) if swapped else (first, second)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without the folder."""
        return {"version": VERSION} | {key: value for key, value in asdict(self).items() if key != "folder"}


def read_study(folder: Path) -> Study:
    """Read and check a study.

    Raises:
        RunFolderError: no study there, another version, damaged, or a picture is missing.
    """
    path = folder / FILE
    if not path.is_file():
        raise RunFolderError(f"{folder}: holds no study ({FILE} is missing); make one with blind-test make --output-dir {folder}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("version") != VERSION:
            raise RunFolderError(f"{path}: made by another version of blind-test; make the study again")
        photos = tuple(Photo(**photo) for photo in values.pop("photos"))
        study = Study(folder=folder, photos=photos, methods=tuple(values.pop("methods")), **values)
        lost = next((file for file in study.pictures.values() if not file.is_file()), None)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunFolderError(f"{path}: damaged ({error}); make the study again") from error
    if lost is not None:
        raise RunFolderError(f"{lost}: missing; copy the study's folder again as a whole")
    return study
