"""A study on disk, and who sees which of its pictures. Loads neither torch nor numpy.

The design is balanced and stays so when raters leave early. A cell is a photo and a pair of methods. A rater gets the cells that were
shown least so far: first photos this rater has not seen, then photos and pairs shown least to all, then the cell shown least; equal ones
by lot. Sides are drawn so that in every cell and in every pair each method stands on the left equally often. Cells of a rater who left are
given back (see `vote_store`).
"""

import json
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from portraitkit.errors import RunFolderError

FILE, VOTES, CONSENT, PICTURES = "study.json", "votes.sqlite", "consent.txt", "pictures"
VERSION = 1
CHECK = -1  # The pair of an attention check: the untouched picture first, the spoiled one second
PAIR_LEAN = 3  # A pair of methods that leans this far to one side is righted before any of its cells


@dataclass(frozen=True)
class Photo:
    """One photo in all its versions; versions are known by opaque tokens, the names of their files without suffix."""

    name: str  # of the photo; never sent to a browser
    versions: dict[str, str]  # method -> token
    original: str  # token of the untouched picture that attention checks show; the reference, or the first method's picture
    spoiled: str  # token of the plainly bad copy of it
    reference: str | None  # token of the picture shown while a key is held, or None
    groups: dict[str, str]  # column -> value, such as {"gender": "female"}


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
    """Read and check a study; RunFolderError: no study there, another version, damaged, or a picture is missing."""
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


@dataclass(frozen=True)
class Cell:
    """One comparison as shown."""

    photo: int  # index of the photo
    pair: int  # index of the pair of methods, or CHECK
    swapped: bool  # whether the second of the pair stands on the left


def draw_session(shown: Iterable[Cell], *, photos: int, pairs: int, length: int, checks: int, generator: random.Random) -> list[Cell]:
    """The comparisons of one more rater, in order: `length` that are drawn, and between them, never first, as many attention checks.

    Of the `photos` and `pairs` of methods there are so many; `shown` is every cell shown or promised so far, checks left out. The
    generator decides between equals, and the order.
    """
    cells, by_photo, by_pair = Counter[tuple[int, int]](), Counter[int](), Counter[int]()
    left, left_of_pair = Counter[tuple[int, int]](), Counter[int]()

    def count(cell: Cell) -> None:
        cells[cell.photo, cell.pair] += 1
        by_photo[cell.photo] += 1
        by_pair[cell.pair] += 1
        side = -1 if cell.swapped else 1
        left[cell.photo, cell.pair] += side
        left_of_pair[cell.pair] += side

    for cell in shown:
        count(cell)
    seen, session = Counter[int](), list[Cell]()
    for _ in range(length):
        least = min((seen[photo], by_photo[photo]) for photo in range(photos))
        level = [photo for photo in range(photos) if (seen[photo], by_photo[photo]) == least]
        photo, pair = min(
            ((photo, pair) for photo in level for pair in range(pairs)),
            key=lambda cell: (by_pair[cell[1]], cells[cell], generator.random()),
        )
        lean = (left[photo, pair] if abs(left_of_pair[pair]) < PAIR_LEAN else 0) or left_of_pair[pair]
        swapped = lean > 0 if lean else generator.random() < 0.5
        session.append(Cell(photo, pair, swapped))
        seen[photo] += 1
        count(session[-1])
    generator.shuffle(session)
    fresh = [photo for photo in range(photos) if not seen[photo]] or list(range(photos))  # checks are on photos outside the session
    start = generator.random() < 0.5
    # the sides by turns in an order drawn by lot
    for check in [Cell(generator.choice(fresh), CHECK, bool(index % 2) != start) for index in range(checks)]:
        session.insert(generator.randint(1, len(session)), check)
    return session
