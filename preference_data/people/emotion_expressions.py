"""Emotions as combinations of action units, drawn with their intensities.

The combinations are those of EMFACS and of Ekman's prototypes as far as the units are rendered: AU23 and AU24 of anger, AU10 and AU16
of disgust are not. A jaw that drops parts the lips, so that AU26 never stands without AU25.
"""

import random

COMBINATIONS = {
    "anger": ((4, 5, 7), (4, 7), (4, 7, 17), (4, 5, 7, 17), (4, 5, 7, 25)),
    "disgust": ((9,), (9, 17), (9, 15), (9, 15, 17), (4, 9, 17), (7, 9, 25)),
    "fear": ((1, 2, 4, 5, 20), (1, 2, 4, 5, 20, 25), (1, 2, 4, 5, 7, 20, 25), (1, 2, 4, 5, 20, 25, 26), (1, 2, 4, 5, 25)),
    "happiness": ((6, 12), (6, 12, 25), (12,), (12, 25), (6, 12, 25, 26)),
    "neutral": ((), (), (), (), (43,)),
    "sadness": ((1, 4, 15), (1, 4, 15, 17), (1, 15), (1, 4), (1, 4, 15, 43)),
    "surprise": ((1, 2, 5, 25, 26), (1, 2, 25, 26), (1, 2, 5), (1, 2, 5, 25)),
}
"""Emotion -> combinations of units that show it, drawn with equal chances; no two emotions share one."""
INTENSITY = (0.65, 1.0)
"""Of a unit that is present: below, several cannot be told from its absence at 128 px."""


def draw_expression(rng: random.Random) -> tuple[str, dict[int, float]]:
    """Draw an emotion, each equally likely, and units that show it.

    Returns:
        The emotion, and the intensities in [0, 1] by number, in ascending order.
    """
    emotion = rng.choice(list(COMBINATIONS))
    return emotion, {unit: rng.uniform(*INTENSITY) for unit in rng.choice(COMBINATIONS[emotion])}
