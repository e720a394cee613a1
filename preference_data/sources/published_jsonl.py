"""Files in the JSONL format itself, as Facial-R1 publishes its annotations (FEA-20K) without pictures.

Layout: `train.jsonl` and `test.jsonl` (one of them is enough, `validation.jsonl` is taken, too) and the pictures at the paths that the
rows name, relative to the folder. Rows are checked (see `preference_data.emotion_rows`) and labels become lower-case nouns; the empty
unit lists of data sets that label no units become null.
"""

from collections.abc import Iterator
from pathlib import Path

from preference_data.emotion_rows import read_emotion_rows
from preference_data.sources import Adapter, ReadOptions, Record, Split, find

LAYOUT = "train.jsonl, test.jsonl and the pictures that their rows name"
PARTS: tuple[Split, ...] = ("train", "validation", "test")


def _read(folder: Path, options: ReadOptions) -> Iterator[Record]:
    find(folder, LAYOUT, *(f"{part}.jsonl" for part in PARTS))
    for part in PARTS:
        if (folder / f"{part}.jsonl").is_file():
            for row in read_emotion_rows(folder / f"{part}.jsonl"):
                yield Record(row.id, folder / row.image, split=part, row=row)


ADAPTER = Adapter("jsonl", LAYOUT, _read)
