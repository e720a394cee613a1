"""RAF-AU (Yan et al. 2020): 4601 pictures of RAF-ML with action units coded by experts.

Layout relied on (as several public loaders read it): `RAFAU_label.txt` with lines `0001.jpg 1+2+L12`, `null` where no unit is
present, L and R before units of one side; pictures `aligned/0001_aligned.jpg`, else `original/0001.jpg`. RAF-AU has no emotions of
its own; where RAF-ML's `EmoLabel/distribution.txt` is put beside (name and six shares: surprise, fear, disgust, happiness, sadness,
anger), the largest share gives one, and a tie none. There is no official split. Unsure: whether names in the label file are padded
with zeros; both are tried.
"""

from collections.abc import Iterator
from pathlib import Path

from portraitkit.errors import DataError
from preference_data.sources import Adapter, ReadOptions, Record, find, finite, first_file, read_table

LAYOUT = "RAFAU_label.txt and aligned/0001_aligned.jpg ..."
ORDER = ("surprise", "fear", "disgust", "happiness", "sadness", "anger")


def _read(folder: Path, options: ReadOptions) -> Iterator[Record]:
    table = find(folder, LAYOUT, "RAFAU_label.txt")
    emotions = _emotions(folder / "EmoLabel" / "distribution.txt")
    for where, (name, codes) in read_table(table, 2):
        stem = Path(name).stem
        parts = [] if codes == "null" else codes.split("+")
        sides = [part for part in parts if part[:1] in "LR"]
        numbers = [part.lstrip("LR") for part in parts]
        if not all(number.isdecimal() for number in numbers):
            raise DataError(f"{where}: {codes!r} must be units such as 1+2+L12, or null")
        names = [folder / "aligned" / f"{name}_aligned.jpg" for name in (stem, stem.zfill(4))]
        names += [folder / "original" / f"{name}.jpg" for name in (stem, stem.zfill(4))]
        yield Record(
            stem,
            first_file(*names),
            units=frozenset(int(number) for number in numbers),
            emotion=emotions.get(stem.lstrip("0")),
            meta={"one_sided": sides} if sides else {},
        )


def _emotions(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    found = {}
    for where, (name, *shares) in read_table(path, 1 + len(ORDER)):
        values = list(finite(where, **dict(zip(ORDER, shares, strict=True))).values())
        if values.count(max(values)) == 1:
            found[Path(name).stem.lstrip("0")] = ORDER[values.index(max(values))]
    return found


ADAPTER = Adapter("raf-au", LAYOUT, _read)
