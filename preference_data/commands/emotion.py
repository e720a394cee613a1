"""The command `make-preferences emotion`: records of an adapter to train.jsonl, test.jsonl and pictures.

The folder: `images`, a link to the data set or a folder of copies; `faces/`, frames and face crops that had to be made;
`train.jsonl`, `test.jsonl` and perhaps `validation.jsonl`; `quarantine.jsonl`, the rows set aside and why; `summary.json`;
`config.json`, `environment.json`.
"""

import os
import random
import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from portraitkit.config import config_to_dict, may_change
from portraitkit.errors import DataError, ImageError
from portraitkit.files.atomic import replacing
from portraitkit.files.jsonl import write_lines
from portraitkit.pictures import list_images
from portraitkit.pictures.images import read_image, write_image
from portraitkit.runs.folder import Maker, start_or_go_on
from portraitkit.runs.terminal import Interruptible, progress_bar
from preference_data.commands.options import EmotionConfig
from preference_data.emotion_rows import EmotionRow, normalise_label, unit_names
from preference_data.sources import Adapter, ReadOptions, Record, load_adapter

ENOUGH = 100
SPLITS = ("train", "validation", "test")
Kept = tuple[Record, EmotionRow]


def build_emotion_rows(config: EmotionConfig) -> int:
    """Build the set; returns the exit code."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    adapter = load_adapter(config.dataset)
    records = adapter.read(config.folder, ReadOptions(config.every, config.min_intensity, lambda text: console.print(f"note: {text}")))
    first = next(records, None)  # a folder that breaks the layout is refused before anything is written
    if first is None:
        raise DataError(f"{config.folder}: holds no rows; the folder must hold {adapter.layout}")
    maker, options = Maker("make-preferences emotion", "min_intensity", "a set made", may_change(EmotionConfig)), config_to_dict(config)
    with start_or_go_on(config.output_dir, options, maker, command=sys.argv, seed=config.seed, overwrite=config.overwrite) as run:
        pictures = _Pictures(config, run.path)
        kept: list[Kept] = []
        aside: list[dict[str, str]] = []
        seen: set[str] = set()
        labelled: set[Path] = set()
        with Interruptible() as interrupt, progress_bar(console, elapsed=True) as bar:
            task = bar.add_task(adapter.name, total=None)
            for record in chain([first], records):
                if record.key in seen:
                    raise DataError(f"{config.folder}: {record.key} comes twice; the labels of one picture must stand together")
                seen.add(record.key)
                if isinstance(record.picture, Path):
                    labelled.add(record.picture)
                row = _to_row(adapter, record, pictures)
                kept.append((record, row)) if isinstance(row, EmotionRow) else aside.append({"id": record.key, "reason": row})
                bar.update(task, description=f"{adapter.name}: {len(kept)} rows, {len(aside)} set aside")
                if interrupt.requested:
                    console.print("interrupted: no rows were written; the same command goes on with the pictures that are there")
                    return interrupt.exit_code
                if pictures.unusable > config.max_unusable * len(seen) and len(seen) >= ENOUGH:
                    raise DataError(
                        f"{pictures.unusable} of {len(seen)} pictures cannot be used ({aside[-1]['reason']}): more than --max-unusable "
                        f"{config.max_unusable}; the folder must hold {adapter.layout}"
                    )
        write_lines(run.path / "quarantine.jsonl", aside)
        if not kept:
            raise DataError(f"{config.folder}: none of {len(aside)} rows can be used, the first: {aside[0]['reason']}")
        splits = _split(config, kept)
        for name in SPLITS:
            if splits[name] or name != "validation":
                write_lines(run.path / f"{name}.jsonl", (row.to_dict() for _, row in splits[name]))
        summary = _summary(splits, aside)
        run.write_json("summary.json", summary)
    console.print(f"{config.output_dir}: {', '.join(f'{len(splits[name])} rows in {name}.jsonl' for name in SPLITS if splits[name])}")
    if aside:
        console.print(f"{len(aside)} rows set aside, see {config.output_dir / 'quarantine.jsonl'}; the first: {aside[0]['reason']}")
    if summary["other_units"]:
        console.print(f"units that the prompt does not define stand in meta_info.other_AUs: {', '.join(summary['other_units'])}")
    if not splits["test"]:
        console.print("test.jsonl is empty: --split subject draws one")
    folders = sorted({picture.parent for picture in labelled} if config.every == 1 else ())
    if bare := [path for folder in folders if folder.is_dir() for path in list_images(folder) if path not in labelled]:
        console.print(f"note: {len(bare)} pictures beside the labelled ones have no label and are left out, for example {bare[0]}")
    return 0


class _Pictures:
    """Gives each record its picture: below images/ by a link to the data set or a copy, below faces/ where it has to be made."""

    def __init__(self, config: EmotionConfig, folder: Path) -> None:
        self.config, self.folder, self.unusable = config, folder, 0
        self.source = config.folder.resolve()

    def place(self, record: Record) -> str:
        """The row's `image`; ImageError where the picture is missing or cannot be read."""
        picture = record.picture
        if not isinstance(picture, Path):
            stem = re.sub(r"[^\w.-]", "_", record.key)[:80]
            target = (
                self.folder / "faces" / f"{stem if stem == record.key else f'{stem}-{sha256(record.key.encode()).hexdigest()[:8]}'}.png"
            )
            if not target.is_file():
                target.parent.mkdir(exist_ok=True)
                write_image(target, picture())
            return f"faces/{target.name}"
        if not picture.is_file():
            raise ImageError(f"{picture}: no such picture")
        if self.config.check_images:
            read_image(picture)
        root = self.source if picture.resolve().is_relative_to(self.source) else self.source.parent
        name = os.path.relpath(picture.resolve(), root)
        if name.startswith(".."):
            raise ImageError(f"{picture}: leads out of the data set's folder")
        if self.config.copy_images:
            target = self.folder / "images" / name
            if not target.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                with replacing(target) as temporary:
                    shutil.copyfile(picture, temporary)
            return f"images/{Path(name).as_posix()}"
        link = self.folder / ("images" if root == self.source else "images-above")
        if not link.is_symlink():
            link.symlink_to(root, target_is_directory=True)
        return f"{link.name}/{Path(name).as_posix()}"


def _to_row(adapter: Adapter, record: Record, pictures: _Pictures) -> EmotionRow | str:
    """The row of a record, or why it is set aside."""
    row = record.row
    if row is None:
        if record.emotion is not None and record.emotion in adapter.skipped:
            return adapter.skipped[record.emotion]
        try:
            labels = () if record.emotion is None else (normalise_label(record.emotion),)
        except DataError as error:
            return str(error)
        units, others = (None, ()) if record.units is None else unit_names(record.units)
        meta = {**record.meta, **({"subject": record.subject} if record.subject else {}), **({"other_AUs": list(others)} if others else {})}
        name = f"{adapter.name}-{record.key}"
        row = EmotionRow(name, adapter.name, "", AUs=units, labels=labels, description=record.description, meta_info=meta)
    if row.AUs is None and not row.labels:
        return "neither action units nor an emotion are labelled"
    try:
        return replace(row, image=pictures.place(record))
    except ImageError as error:
        pictures.unusable += 1
        return str(error)


def _split(config: EmotionConfig, kept: Sequence[Kept]) -> dict[str, list[Kept]]:
    """The rows of each split: the official one where every row has one and it is wanted, else drawn by subject."""
    splits: dict[str, list[Kept]] = {name: [] for name in SPLITS}
    rng = random.Random(config.seed)
    if config.split == "official" and all(record.split is not None for record, _ in kept):
        for record, row in kept:
            splits[str(record.split)].append((record, row))
    else:
        subjects = sorted({record.subject or record.key for record, _ in kept})
        rng.shuffle(subjects)
        wanted = max(round(config.test_share * len(subjects)), 1) if config.test_share and len(subjects) > 1 else 0
        test = set(subjects[:wanted])
        for record, row in kept:
            splits["test" if (record.subject or record.key) in test else "train"].append((record, row))
    if config.count:
        for name, rows in splits.items():
            chosen = sorted(rng.sample(range(len(rows)), min(config.count, len(rows))))
            splits[name] = [rows[place] for place in chosen]
    return splits


def _summary(splits: dict[str, list[Kept]], aside: list[dict[str, str]]) -> dict[str, Any]:
    rows = [row for kept in splits.values() for _, row in kept]
    others = Counter(unit for row in rows for unit in row.meta_info.get("other_AUs", ()))
    return {
        "rows": {name: len(kept) for name, kept in splits.items()},
        "subjects": {name: len({record.subject for record, _ in kept} - {""}) for name, kept in splits.items()},
        "set_aside": len(aside),
        "action_units": dict(Counter(unit for row in rows for unit in row.AUs or ())),
        "emotions": dict(Counter(label for row in rows for label in row.labels)),
        "other_units": dict(others),
    }
