"""What each action unit does to a face, as numbers (pushes of the skin, lids, mouth opening, folds), and the emotions that they show.

Lengths are shares of the distance between the outer eye corners; x towards the picture's right, y down the face, both turned with
the face. Sides are given for the person's right (the picture's left) and mirrored. Numbers of units are those of the Facial Action
Coding System (Ekman and Friesen); the sizes are ours, set by looking at the result.
"""

import random
import tomllib
from dataclasses import dataclass
from pathlib import Path

from preference_data.people.face_frame import Push


@dataclass(frozen=True)
class Fold:
    """A soft dark line through points (landmark, dx, dy), as a crease of the skin."""

    points: tuple[tuple[int, float, float], ...]  # of the right side; mirrored, unless `central`
    depth: float  # share of light that it takes away in its middle
    width: float = 0.012  # sigma
    central: bool = False  # the points span both sides already


@dataclass(frozen=True)
class Unit:
    """One action unit at full intensity."""

    pushes: tuple[Push, ...] = ()  # of the skin
    upper_lid: float = 0.0  # lowering of the upper lid over the eye's opening; negative raises it
    lower_lid: float = 0.0  # raising of the lower lid over the eye's opening
    lips: float = 0.0  # how far the lips part
    jaw: float = 0.0  # how far the jaw drops
    folds: tuple[Fold, ...] = ()  # creases


def _units() -> dict[int, Unit]:
    units = {}
    for number, unit in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")).items():
        pushes = tuple(Push(*push) for push in unit.pop("pushes", ()))
        folds = tuple(Fold(tuple(tuple(point) for point in fold.pop("points")), **fold) for fold in unit.pop("folds", ()))
        units[int(number)] = Unit(pushes, folds=folds, **unit)
    return units


UNITS = _units()
COMBINATIONS = {
    "anger": ((4, 5, 7), (4, 7), (4, 7, 17), (4, 5, 7, 17), (4, 5, 7, 25)),
    "disgust": ((9,), (9, 17), (9, 15), (9, 15, 17), (4, 9, 17), (7, 9, 25)),
    "fear": ((1, 2, 4, 5, 20), (1, 2, 4, 5, 20, 25), (1, 2, 4, 5, 7, 20, 25), (1, 2, 4, 5, 20, 25, 26), (1, 2, 4, 5, 25)),
    "happiness": ((6, 12), (6, 12, 25), (12,), (12, 25), (6, 12, 25, 26)),
    "neutral": ((), (), (), (), (43,)),
    "sadness": ((1, 4, 15), (1, 4, 15, 17), (1, 15), (1, 4), (1, 4, 15, 43)),
    "surprise": ((1, 2, 5, 25, 26), (1, 2, 25, 26), (1, 2, 5), (1, 2, 5, 25)),
}
"""Emotion -> combinations of units that show it, drawn with equal chances; no two emotions share one.

Those of EMFACS and of Ekman's prototypes as far as the units are rendered: AU23 and AU24 of anger, AU10 and AU16 of disgust are not. A
jaw that drops parts the lips, so that AU26 never stands without AU25."""
INTENSITY = (0.65, 1.0)  # Of a unit that is present: below, several cannot be told from its absence at 128 px


def draw_expression(rng: random.Random) -> tuple[str, dict[int, float]]:
    """Draw an emotion, each equally likely, and units that show it.

    Returns:
        The emotion, and the intensities in [0, 1] by number, in ascending order.
    """
    emotion = rng.choice(list(COMBINATIONS))
    return emotion, {unit: rng.uniform(*INTENSITY) for unit in rng.choice(COMBINATIONS[emotion])}
