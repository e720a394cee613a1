"""FABA-Instruct (Li et al. 2024, EmoLA): pictures of AffectNet with emotions, action units and descriptions by a model.

Layout relied on (EmoLA's README and evaluation code): `train/train_au_anno.json`, `train/train_emotion_anno.json`,
`eval/eval_au_anno.json`, `eval/eval_emotion_anno.json` and `train/images/`, `eval/images/`; each annotation is a list of objects with
`image` (a path from the folder above FABAInstruct), `label` (units as "1, 2, 4"; an emotion as a word or as EmoLA's number) and
`gpt4` (the description). Official split: train and eval. Unsure: whether the training files carry `label` and `gpt4` like those of eval,
or conversations; then the text is the last turn, units are those it names, and a row without a label has no emotion.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from portraitkit.errors import DataError
from preference_data.emotion_rows import SYNONYMS
from preference_data.sources import Adapter, ReadOptions, Record, Split, coded, find

LAYOUT = "train/train_au_anno.json, train/train_emotion_anno.json, eval/eval_au_anno.json, eval/eval_emotion_anno.json and images/ in both"
NUMBERS = dict(zip("0123456", ("happiness", "sadness", "surprise", "anger", "neutral", "disgust", "fear"), strict=True))
WORDS = {word: word for noun, words in SYNONYMS.items() for word in (noun, *words)}
NAMED = re.compile(r"AU\s?(\d+)")


def _read(folder: Path, options: ReadOptions) -> Iterator[Record]:
    find(folder, LAYOUT, "train", "eval")
    parts: tuple[tuple[str, Split], ...] = (("train", "train"), ("eval", "test"))
    for part, split in parts:
        if not (folder / part).is_dir():
            continue
        units = _annotations(folder, part, "au")
        emotions = _annotations(folder, part, "emotion")
        for image in dict.fromkeys([*units, *emotions]):
            (where, au), (where_too, emotion) = units.get(image, ("", None)), emotions.get(image, ("", None))
            label = None if emotion is None else emotion.get("label")
            texts = {name: _text(item) for name, item in (("au", au), ("emotion", emotion)) if item is not None}
            places = [folder.parent / image, folder / image, folder / part / "images" / Path(image).name]
            yield Record(
                f"{part}-{Path(image).stem}",
                next((path for path in places if path.is_file()), places[-1]),
                units=None if au is None else _units(where, au),
                emotion=None if label is None else coded(where_too, {**NUMBERS, **WORDS}, str(label).strip().lower()),
                split=split,
                description=" ".join(text for text in texts.values() if text),
                meta={f"{name}_description": text for name, text in texts.items() if text},
            )


def _annotations(folder: Path, part: str, kind: str) -> dict[str, tuple[str, dict[str, Any]]]:
    path = folder / part / f"{part}_{kind}_anno.json"
    if not path.is_file():
        return {}
    try:
        items = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(items, list):
        raise DataError(f"{path}: must be a list of annotations")
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict) or not isinstance(item.get("image"), str):
            raise DataError(f"{path} item {number}: needs the path of an image")
        where, before = found.setdefault(item["image"], (f"{path} item {number}", item))
        if before != item:
            raise DataError(f"{path} item {number}: says something else of {item['image']!r} than {where}; leave one of them in")
    return found


def _units(where: str, item: dict[str, Any]) -> frozenset[int] | None:
    label = item.get("label")
    if label is None:
        return frozenset(int(number) for number in NAMED.findall(_text(item))) or None
    numbers = [part.strip().removeprefix("AU") for part in str(label).split(",") if part.strip()]
    if not all(number.isdecimal() for number in numbers):
        raise DataError(f'{where}: label {label!r} must be units such as "1, 2, 4"')
    return frozenset(int(number) for number in numbers)


def _text(item: dict[str, Any]) -> str:
    text = item.get("gpt4")
    turns = item.get("conversations")
    if text is None and isinstance(turns, list) and turns and isinstance(turns[-1], dict):
        text = turns[-1].get("value")
    return text.strip() if isinstance(text, str) else ""


ADAPTER = Adapter("faba", LAYOUT, _read)
