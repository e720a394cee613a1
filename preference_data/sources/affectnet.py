"""AffectNet (Mollahosseini et al. 2019): eight emotions, valence and arousal.

Layouts relied on: the later delivery `train_set/images/0.jpg`, `train_set/annotations/0_exp.npy` (with `_val.npy` and `_aro.npy`)
and `val_set/`; or the first one, `training.csv` and `validation.csv` with the columns subDirectory_filePath, expression, valence and
arousal, and the pictures below `Manually_Annotated_Images/`. Codes: 0 neutral, 1 happiness, 2 sadness, 3 surprise, 4 fear,
5 disgust, 6 anger, 7 contempt; 8 none, 9 uncertain and 10 no face are set aside. The test set was never published: as usual, the
validation set is the test set.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from portraitkit.errors import DataError
from preference_data.sources import Adapter, ReadOptions, Record, Split, coded, find, finite, read_csv

LAYOUT = "train_set/images, train_set/annotations/0_exp.npy ... and val_set, or training.csv, validation.csv and Manually_Annotated_Images"
NAMES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt", "none", "uncertain", "no face")
CODES = {str(number): name for number, name in enumerate(NAMES)}
PARTS: tuple[tuple[str, str, Split], ...] = (("train_set", "training.csv", "train"), ("val_set", "validation.csv", "test"))


def _read(folder: Path, options: ReadOptions) -> Iterator[Record]:
    later = find(folder, LAYOUT, *(name for part in PARTS for name in part[:2])).is_dir()
    for directory, table, split in PARTS:
        if not later and (folder / table).is_file():
            yield from _read_csv(folder, table, split)
        paths = (folder / directory / "annotations").glob("*_exp.npy") if later else ()
        for path in sorted(paths, key=lambda path: (len(path.name), path.name)):
            stem = path.name.removesuffix("_exp.npy")
            files = {name: path.with_name(f"{stem}_{short}.npy") for name, short in (("valence", "val"), ("arousal", "aro"))}
            meta = finite(str(path), **{name: str(_array(file)) for name, file in files.items() if file.is_file()})
            emotion = coded(str(path), CODES, str(_array(path)).strip().removesuffix(".0"))
            yield Record(f"{directory}-{stem}", folder / directory / "images" / f"{stem}.jpg", emotion=emotion, split=split, meta=meta)


def _array(path: Path) -> Any:
    import numpy as np

    try:
        return np.load(path, allow_pickle=False).item()
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: must be one number ({error})") from error


def _read_csv(folder: Path, table: str, split: Split) -> Iterator[Record]:
    pictures = find(folder, LAYOUT, "Manually_Annotated_Images", "Manually_Annotated/Manually_Annotated_Images")
    for where, row in read_csv(folder / table, "subDirectory_filePath", "expression"):
        name = row["subDirectory_filePath"]
        if not Path(name).name:
            raise DataError(f"{where}: names no picture")
        if name.startswith("/") or ".." in Path(name).parts:
            raise DataError(f"{where}: {name!r} leads out of the folder")
        meta = finite(where, **{key: row[key] for key in ("valence", "arousal") if row.get(key)})
        emotion = coded(where, CODES, row["expression"])
        yield Record(str(Path(name).with_suffix("")).replace("/", "-"), pictures / name, emotion=emotion, split=split, meta=meta)


ADAPTER = Adapter(
    "affectnet",
    LAYOUT,
    _read,
    skipped={"none": "no emotion (code 8)", "uncertain": "annotators were uncertain (code 9)", "no face": "shows no face (code 10)"},
)
