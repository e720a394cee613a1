"""BP4D-Spontaneous (Zhang et al. 2014): 41 subjects, 8 tasks, action units coded as present, absent or unknown.

Layout relied on (as several public loaders read it): `AUCoding/AU_OCC/F001_T1.csv`, whose header names the columns 0 (the frame)
and 1 to 99 (the units), with 1 present, 0 absent, 9 unknown; pictures `Sequences(2D+3D)/F001/T1/<frame>.jpg`, or `F001/T1/` in
the folder itself, numbered with up to five digits. An unknown unit, or one without a column, is not listed as present, and
`meta_info.unknown` names those of the 27 that are evaluated: neither rewards nor figures look at them. There is no official split: the
13 subjects of the third fold that most publications share are the test set. Unsure: the name of the pictures' folder differs between
deliveries; make a link named as above.
"""

from collections.abc import Iterator
from pathlib import Path

from portraitkit.errors import DataError
from portraitkit.pictures import list_images
from preference_data.emotion_rows import AU_LISTS
from preference_data.sources import Adapter, ReadOptions, Record, find, first_file, read_csv, some_of

LAYOUT = "AUCoding/AU_OCC/F001_T1.csv ... and Sequences(2D+3D)/F001/T1/0001.jpg ..."
FOLD_3 = ("F004", "F006", "F007", "F012", "F014", "F015", "F017", "F019", "F021", "M003", "M006", "M009", "M015")
EVALUATED = frozenset(AU_LISTS["bp4d"])


def _read(folder: Path, options: ReadOptions) -> Iterator[Record]:
    codes = find(folder, LAYOUT, "AUCoding/AU_OCC", "AU_OCC")
    roots = [root for root in (folder / "Sequences(2D+3D)", folder) if root.is_dir()]
    for table in sorted(codes.glob("*.csv")):
        subject, _, task = table.stem.partition("_")
        pictures = next((root / subject / task for root in roots if (root / subject / task).is_dir()), None)
        if pictures is None:
            raise DataError(f"{folder}: has no pictures {subject}/{task} for {table.name}; the folder must hold {LAYOUT}")
        rows, numbers = list(_rows(table)), {int(path.stem) for path in list_images(pictures) if path.stem.isdecimal()}
        frames = {frame for frame, *_ in rows}
        if 0 in numbers - frames and (unseen := frames - numbers):
            found = f"a picture 0 has no label and labels {some_of(unseen)} no picture; both must count from one number"
            raise DataError(f"{pictures}: {found}, or each label is on another frame: renumber them")
        for place, (frame, present, unknown) in enumerate(rows):
            if place % options.every == 0:
                yield Record(
                    f"{table.stem}-{frame:05d}",
                    first_file(*(pictures / f"{frame:0{digits}d}.jpg" for digits in (4, 3, 5, 2, 1))),
                    units=present,
                    split="test" if subject in FOLD_3 else "train",
                    subject=subject,
                    meta={"task": task, "frame": frame, **({"unknown": [f"AU{unit}" for unit in unknown]} if unknown else {})},
                )


def _rows(table: Path) -> Iterator[tuple[int, frozenset[int], list[int]]]:
    for where, row in read_csv(table, "0"):
        if not all(name.isdecimal() for name in row):
            raise DataError(f"{table} line 1: must name the columns 0, 1, 2 ...: the frame and the units")
        frame = row.pop("0")
        if not frame.isdecimal():
            raise DataError(f"{where}: frame {frame!r} must be a number")
        bad = next((code for code in row.values() if code not in ("0", "1", "9")), None)
        if bad is not None:
            raise DataError(f"{where}: code {bad!r} is none of 0 (absent), 1 (present), 9 (unknown)")
        codes = {int(unit): code for unit, code in row.items()}
        present = frozenset(unit for unit, code in codes.items() if code == "1")
        yield int(frame), present, sorted(unit for unit in EVALUATED if codes.get(unit, "9") == "9")


ADAPTER = Adapter("bp4d", LAYOUT, _read)
