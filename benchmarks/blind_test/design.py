"""Who sees what: a balanced design that stays balanced when raters leave early.

A cell is a photo and a pair of methods. A rater gets the cells that were shown least so far: first photos this rater has not
seen, then photos and pairs shown least to all, then the cell shown least; equal ones by lot. Sides are drawn so that in every
cell and in every pair each method stands on the left equally often. Cells of a rater who left are given back (see `store`).
"""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

CHECK = -1
"""The pair of an attention check: the untouched picture first, the spoiled one second."""
PAIR_LEAN = 3
"""A pair of methods that leans this far to one side is righted before any of its cells."""


@dataclass(frozen=True)
class Cell:
    """One comparison as shown.

    Attributes:
        photo: index of the photo.
        pair: index of the pair of methods, or CHECK.
        swapped: whether the second of the pair stands on the left.
    """

    photo: int
    pair: int
    swapped: bool


def draw_session(shown: Iterable[Cell], *, photos: int, pairs: int, length: int, checks: int, generator: random.Random) -> list[Cell]:
    """The comparisons of one more rater, in order.

    Args:
        shown: every cell shown or promised so far, checks left out.
        photos: how many.
        pairs: how many pairs of methods.
        length: comparisons to draw.
        checks: attention checks to put between them, never first.
        generator: decides between equals, and the order.

    Returns:
        length + checks cells.
    """
    cells, by_photo, by_pair = Counter[tuple[int, int]](), Counter[int](), Counter[int]()
    left, left_of_pair = Counter[tuple[int, int]](), Counter[int]()
    for cell in shown:
        cells[cell.photo, cell.pair] += 1
        by_photo[cell.photo] += 1
        by_pair[cell.pair] += 1
        side = -1 if cell.swapped else 1
        left[cell.photo, cell.pair] += side
        left_of_pair[cell.pair] += side
    own: Counter[int] = Counter()
    session = []
    for _ in range(length):
        least = min((own[photo], by_photo[photo]) for photo in range(photos))
        level = [photo for photo in range(photos) if (own[photo], by_photo[photo]) == least]
        photo, pair = min(
            ((photo, pair) for photo in level for pair in range(pairs)),
            key=lambda cell: (by_pair[cell[1]], cells[cell], generator.random()),
        )
        lean = (left[photo, pair] if abs(left_of_pair[pair]) < PAIR_LEAN else 0) or left_of_pair[pair]
        swapped = lean > 0 if lean else generator.random() < 0.5
        session.append(Cell(photo, pair, swapped))
        side = -1 if swapped else 1
        own[photo] += 1
        by_photo[photo] += 1
        by_pair[pair] += 1
        cells[photo, pair] += 1
        left[photo, pair] += side
        left_of_pair[pair] += side
    generator.shuffle(session)
    for check in _checks(session, photos, checks, generator):
        session.insert(generator.randint(1, len(session)), check)
    return session


def _checks(session: list[Cell], photos: int, count: int, generator: random.Random) -> list[Cell]:
    """Checks on photos outside the session where there are any, the sides by turns in an order drawn by lot."""
    seen = {cell.photo for cell in session}
    fresh = [photo for photo in range(photos) if photo not in seen] or list(range(photos))
    sides = [bool(index % 2) for index in range(count)]
    start = generator.random() < 0.5
    return [Cell(generator.choice(fresh), CHECK, side != start) for side in sides]
