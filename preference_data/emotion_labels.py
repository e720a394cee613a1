"""Action units and emotions: their names, what they look like, and the lists that published evaluations score.

Names are those of the Facial Action Coding System (Ekman and Friesen); the appearances are in our words.
"""

from portraitkit.errors import DataError
from portraitkit.suggest import nearest

DEFINITIONS = {
    1: ("inner brow raiser", "the inner ends of the brows go up"),
    2: ("outer brow raiser", "the outer ends of the brows go up"),
    4: ("brow lowerer", "the brows come down and together"),
    5: ("upper lid raiser", "the upper lids rise and bare more of the eyes"),
    6: ("cheek raiser", "the cheeks rise and push the lower lids up, with crow's feet"),
    7: ("lid tightener", "the lids tense and narrow the eyes"),
    9: ("nose wrinkler", "the nose wrinkles and its wings rise"),
    10: ("upper lip raiser", "the middle of the upper lip rises"),
    11: ("nasolabial deepener", "the fold beside the nose deepens at its upper part"),
    12: ("lip corner puller", "the lip corners are drawn up and back, as in a smile"),
    13: ("sharp lip puller", "the lip corners rise steeply and the cheeks puff"),
    14: ("dimpler", "the lip corners tighten inwards and make dimples"),
    15: ("lip corner depressor", "the lip corners turn down"),
    16: ("lower lip depressor", "the lower lip is drawn down"),
    17: ("chin raiser", "the chin bulges and pushes the lower lip up"),
    18: ("lip pucker", "the lips are drawn together and forwards, as to kiss"),
    19: ("tongue show", "the tongue shows"),
    20: ("lip stretcher", "the lips are stretched sideways"),
    22: ("lip funneler", "the lips open outwards into a funnel"),
    23: ("lip tightener", "the lips tighten and look narrower"),
    24: ("lip pressor", "the lips press on each other"),
    25: ("lips part", "the lips part"),
    26: ("jaw drop", "the jaw hangs down, relaxed"),
    27: ("mouth stretch", "the mouth is stretched wide open"),
    28: ("lip suck", "the lips are drawn in over the teeth"),
    29: ("jaw thrust", "the lower jaw is pushed forwards"),
    30: ("jaw sideways", "the lower jaw is pushed to one side"),
    31: ("jaw clencher", "the teeth are clenched and the jaw muscles bulge"),
    32: ("lip bite", "the teeth bite a lip"),
    43: ("eyes closed", "the eyes are closed"),
}
"""The 30 action units that the prompt defines: number -> (FACS name, what is seen)."""
ACTION_UNITS = {number: name for number, (name, _) in DEFINITIONS.items()}
"""FACS names alone."""
EMOTIONS = ("anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")

AU_LISTS = {
    "all": tuple(DEFINITIONS),
    "disfa": (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26),
    "bp4d": (1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 22, 23, 24, 27, 28, 30, 32, 34, 38, 39),
    "raf-au": (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 16, 17, 18, 19, 20, 22, 23, 24, 25, 26, 27, 28, 29, 30, 32, 43),
    "faba": (1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 22, 23, 24, 25, 26, 27, 28, 30, 43),
    "emola-disfa": (1, 2, 4, 6, 9, 12, 25, 26),
    "emola-bp4d": (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24),
    "emola-faba": (1, 2, 4, 5, 6, 10, 12, 17, 24, 25, 26, 43),
}
"""Units that an evaluation scores, by name: the prompt's, the sets that Facial-R1's configuration lists for DISFA, BP4D (test),
RAF-AU and FABA (training), and what EmoLA's evaluation selects. AU34, AU38 and AU39 of BP4D are not among the prompt's 30."""

SYNONYMS = {
    "anger": ("angry",),
    "contempt": ("contemptuous",),
    "disgust": ("disgusted",),
    "fear": ("fearful", "scared", "afraid"),
    "happiness": ("happy", "joy"),
    "neutral": ("neutrality",),
    "sadness": ("sad",),
    "surprise": ("surprised",),
}
_NOUNS = {word: noun for noun, words in SYNONYMS.items() for word in (noun, *words)}


def normalise_label(word: str) -> str:
    """The lower-case noun of an emotion, as in "Angry" -> "anger".

    Raises:
        DataError: not one of the eight emotions or a common word for one.
    """
    noun = _NOUNS.get(word.strip().lower())
    if noun is None:
        raise DataError(f"label {word!r}: unknown emotion{nearest(word.strip().lower(), _NOUNS)}; use {', '.join(EMOTIONS)}")
    return noun
