"""RAF-DB (Li et al. 2017), the basic set: 15 339 pictures, seven emotions.

Layout relied on (the same in many public loaders): `basic/EmoLabel/list_patition_label.txt` (spelt so) with lines
`train_00001.jpg 5`; pictures `basic/Image/aligned/train_00001_aligned.jpg`, else `basic/Image/original/train_00001.jpg`. Codes: 1
surprise, 2 fear, 3 disgust, 4 happiness, 5 sadness, 6 anger, 7 neutral. Official split: the first word of the name.
"""

from collections.abc import Iterator
from pathlib import Path

from portraitkit.errors import DataError
from preference_data.sources import Adapter, ReadOptions, Record, Split, coded, find, first_file, read_table

LAYOUT = "basic/EmoLabel/list_patition_label.txt and basic/Image/aligned/train_00001_aligned.jpg ..."
CODES = dict(zip("1234567", ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"), strict=True))
SPLITS: dict[str, Split] = {"train": "train", "test": "test"}


def _read(folder: Path, options: ReadOptions) -> Iterator[Record]:
    table = find(folder, LAYOUT, "basic/EmoLabel/list_patition_label.txt", "EmoLabel/list_patition_label.txt")
    pictures = table.parents[1] / "Image"
    for where, (name, code) in read_table(table, 2):
        stem, part = Path(name).stem, name.partition("_")[0]
        if part not in SPLITS:
            raise DataError(f"{where}: {name!r} must begin with train_ or test_")
        picture = first_file(pictures / "aligned" / f"{stem}_aligned.jpg", pictures / "original" / f"{stem}.jpg")
        yield Record(stem, picture, emotion=coded(where, CODES, code), split=SPLITS[part])


ADAPTER = Adapter("raf-db", LAYOUT, _read)
