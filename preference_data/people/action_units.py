"""What each action unit does to a face, as numbers (pushes of the skin, lids, mouth opening, folds), and the emotions that they show.

Lengths are shares of the distance between the outer eye corners; x towards the picture's right, y down the face, both turned with
the face. Sides are given for the person's right (the picture's left) and mirrored. Numbers of units are those of the Facial Action
Coding System (Ekman and Friesen); the sizes are ours, set by looking at the result.
"""

import random
from dataclasses import dataclass

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


UNITS = {
    1: Unit(
        pushes=(Push(107, 0.0, -0.085, 0.10, 0.11),),
        folds=(
            Fold(((107, 0.02, -0.05), (9, 0.0, -0.075), (336, -0.02, -0.05)), 0.16, 0.018, central=True),
            Fold(((107, 0.04, -0.10), (9, 0.0, -0.125), (336, -0.04, -0.10)), 0.12, 0.018, central=True),
        ),
    ),
    2: Unit(
        pushes=(Push(63, -0.005, -0.095, 0.13, 0.11),),
        folds=(Fold(((63, -0.02, -0.07), (105, 0.0, -0.09), (66, 0.02, -0.075)), 0.14, 0.018),),
    ),
    4: Unit(
        pushes=(Push(55, 0.04, 0.07, 0.11, 0.10), Push(52, 0.015, 0.04, 0.12, 0.08)),
        folds=(Fold(((8, -0.05, 0.06), (8, -0.05, 0.02), (9, -0.065, 0.02)), 0.20, 0.020),),
    ),
    5: Unit(upper_lid=-0.5, pushes=(Push(27, 0.0, -0.012, 0.12, 0.05),)),
    6: Unit(
        pushes=(Push(50, 0.01, -0.075, 0.17, 0.12),),
        upper_lid=0.06,
        lower_lid=0.38,
        folds=(
            Fold(((33, -0.05, -0.01), (33, -0.13, -0.055)), 0.30, 0.011),
            Fold(((33, -0.055, 0.015), (33, -0.14, 0.015)), 0.30, 0.011),
            Fold(((33, -0.045, 0.04), (33, -0.12, 0.075)), 0.30, 0.011),
            Fold(((31, 0.0, 0.01), (228, 0.02, 0.01), (230, 0.0, 0.01), (232, -0.02, 0.0)), 0.30, 0.015),
        ),
    ),
    7: Unit(upper_lid=0.26, lower_lid=0.48, folds=(Fold(((25, 0.0, 0.015), (24, 0.0, 0.015), (22, 0.0, 0.015)), 0.2, 0.012),)),
    9: Unit(
        pushes=(Push(129, 0.0, -0.055, 0.09, 0.09), Push(55, 0.02, 0.035, 0.11, 0.08), Push(37, 0.0, -0.03, 0.10, 0.05)),
        folds=(
            Fold(((193, 0.02, 0.02), (168, 0.0, 0.035), (417, -0.02, 0.02)), 0.10, 0.022, central=True),
            Fold(((193, 0.03, 0.07), (6, 0.0, 0.03), (417, -0.03, 0.07)), 0.12, 0.022, central=True),
            Fold(((6, -0.06, 0.05), (174, 0.0, 0.0)), 0.24, 0.018),
            Fold(((129, -0.01, -0.04), (203, 0.0, 0.0), (206, 0.03, 0.0)), 0.35, 0.016),
        ),
    ),
    12: Unit(
        pushes=(Push(61, -0.085, -0.085, 0.15, 0.13), Push(205, -0.01, -0.03, 0.14, 0.12)),
        folds=(Fold(((129, -0.03, 0.0), (203, -0.02, 0.02), (206, -0.02, 0.02), (216, -0.03, 0.03)), 0.22, 0.018),),
    ),
    15: Unit(
        pushes=(Push(61, 0.0, 0.085, 0.11, 0.10),),
        folds=(Fold(((61, -0.03, 0.01), (61, -0.05, 0.06), (61, -0.05, 0.11)), 0.28, 0.018),),
    ),
    17: Unit(
        pushes=(Push(199, 0.0, -0.045, 0.16, 0.09), Push(17, 0.0, -0.045, 0.16, 0.07), Push(61, 0.0, 0.02, 0.09, 0.08)),
        folds=(Fold(((182, 0.0, 0.0), (18, 0.0, 0.0), (406, 0.0, 0.0)), 0.18, 0.022, central=True),),
    ),
    20: Unit(
        pushes=(Push(61, -0.105, 0.015, 0.14, 0.10), Push(17, 0.0, -0.015, 0.12, 0.04), Push(0, 0.0, 0.01, 0.12, 0.03)),
        folds=(Fold(((61, -0.06, -0.04), (61, -0.075, 0.01), (61, -0.06, 0.06)), 0.22, 0.014),),
    ),
    25: Unit(lips=0.075),
    26: Unit(jaw=0.19, pushes=(Push(61, 0.035, 0.02, 0.10, 0.10),)),
    43: Unit(upper_lid=0.9, lower_lid=0.1),
}  # fmt: skip


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
