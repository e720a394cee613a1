"""Who wins a comparison: the files of a pair, the places where they are shown, and the way from one to the other.

A `Verdict` names a file of the pair as it is stored: "a", "b" or "tie". A `Shown` verdict names a place in front of a judge: "first"
(Image1), "second" (Image2) or "tie". An `Order` says which file stands in which place.
"""

import re
from typing import Literal, TypeVar, get_args

Verdict = Literal["a", "b", "tie"]
Place = Literal["first", "second"]
Shown = Literal["first", "second", "tie"]
Order = Literal["ab", "ba"]
VERDICTS: tuple[str, ...] = get_args(Verdict)
ORDERS: tuple[Order, ...] = ("ab", "ba")
OTHER: dict[Verdict, Verdict] = {"a": "b", "b": "a", "tie": "tie"}
NUMBERS: dict[Place, int] = {"first": 1, "second": 2}  # The places as prompts number them: Image1 and Image2
PLACES: dict[int, Place] = {1: "first", 2: "second"}
EXCHANGED: dict[Shown, Shown] = {"first": "second", "second": "first", "tie": "tie"}
T = TypeVar("T")


def winner(a: float, b: float, near: float = 0.0) -> Verdict:
    """The file with the higher score; a tie up to a difference of `near`."""
    return "tie" if abs(a - b) <= near else "a" if a > b else "b"


def place_of(file: Literal["a", "b"], order: Order) -> Place:
    """Where a file is shown."""
    return "first" if file == order[0] else "second"


def file_at(place: Place, order: Order) -> Literal["a", "b"]:
    """Which file is shown there."""
    return "a" if (place == "first") == (order == "ab") else "b"


def shown_as(verdict: Verdict, order: Order) -> Shown:
    """A verdict about files, said about places."""
    return "tie" if verdict == "tie" else place_of(verdict, order)


def about_files(shown: Shown, order: Order) -> Verdict:
    """A verdict about places, said about files."""
    return "tie" if shown == "tie" else file_at(shown, order)


def in_order(both: tuple[T, T], order: Order) -> tuple[T, T]:
    """(of a, of b) as (of the first, of the second), and back: the same exchange both ways."""
    return both if order == "ab" else (both[1], both[0])


def turned(text: str) -> str:
    """Words about Image1 and Image2 as they read with the two exchanged.

    >>> turned("Image1 is sharper than Image2.")
    'Image2 is sharper than Image1.'
    """
    return re.sub(r"\b([Ii]mage ?)([12])\b", lambda found: found[1] + ("2" if found[2] == "1" else "1"), text)
