"""FER2013 (Goodfellow et al. 2013): 35 887 grey pictures of 48 x 48 pixels, seven emotions.

Layouts relied on: the original `fer2013.csv` with the columns emotion (0 angry, 1 disgust, 2 fear, 3 happy, 4 sad, 5 surprise,
6 neutral), pixels (2304 numbers) and Usage; or the common folders `train/angry/*.jpg` and `test/angry/*.jpg`. Official split:
Training, PublicTest (here: validation), PrivateTest (here: test). Persons are not identified, and the set is known to hold near copies.
"""

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from portraitkit.errors import DataError
from preference_data.sources import Adapter, ReadOptions, Record, Split, coded, find, read_csv

if TYPE_CHECKING:
    from numpy import ndarray

LAYOUT = "fer2013.csv, or train/angry/*.jpg ... and test/angry/*.jpg ..."
CODES = dict(zip("0123456", ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"), strict=True))
SPLITS: dict[str, Split] = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}
SIDE = 48


def _read(folder: Path, options: ReadOptions) -> Iterator[Record]:
    if find(folder, LAYOUT, "fer2013.csv", "train").is_dir():
        parts: tuple[Split, ...] = ("train", "test")
        if others := sorted({path.name for part in parts for path in (folder / part).glob("*/")} - set(CODES.values())):
            options.note(f"{folder}: folders {', '.join(others)} are no emotion of FER2013 ({', '.join(CODES.values())}) and are left out")
        for part, emotion in product(parts, CODES.values()):
            for path in sorted((folder / part / emotion).glob("*.*")):
                yield Record(f"{part}-{emotion}-{path.stem}", path, emotion=emotion, split=part)
        return
    for number, (where, row) in enumerate(read_csv(folder / "fer2013.csv", "emotion", "pixels", "Usage")):
        if row["Usage"] not in SPLITS:
            raise DataError(f"{where}: Usage {row['Usage']!r} is none of {', '.join(SPLITS)}")
        emotion = coded(where, CODES, row["emotion"])
        yield Record(f"{number:05d}", _pixels(where, row["pixels"]), emotion=emotion, split=SPLITS[row["Usage"]])


def _pixels(where: str, text: str) -> "Callable[[], ndarray]":
    values = text.split()
    if len(values) != SIDE * SIDE or not all(value.isdecimal() and int(value) < 256 for value in values):
        raise DataError(f"{where}: pixels must be {SIDE * SIDE} numbers from 0 to 255")

    def make() -> "ndarray":
        import numpy as np

        return np.repeat(np.array(values, dtype=np.uint8).reshape(SIDE, SIDE, 1), 3, axis=2)

    return make


ADAPTER = Adapter("fer2013", LAYOUT, _read)
