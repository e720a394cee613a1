"""ExpW (Zhang et al. 2018): 91 793 faces in 106 962 photos from the web, seven emotions.

Layout relied on (as several public loaders read it): `label/label.lst` with lines `name face_id top left right bottom confidence
label`, and photos in `image/origin/`. Codes: 0 angry, 1 disgust, 2 fear, 3 happy, 4 sad, 5 surprise, 6 neutral. Each face is cut out
with a margin of a quarter of its box. There is no official split: faces of one photo stay together. Unsure: the same person may appear
in several photos; nobody is identified.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from portraitkit.errors import DataError, ImageError
from preference_data.sources import Adapter, ReadOptions, Record, coded, find, finite, read_table

if TYPE_CHECKING:
    from numpy import ndarray

LAYOUT = "label/label.lst and image/origin/*.jpg"
CODES = dict(zip("0123456", ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"), strict=True))
MARGIN = 0.25


def _read(folder: Path, options: ReadOptions) -> Iterator[Record]:
    table = find(folder, LAYOUT, "label/label.lst", "label.lst")
    photos = find(folder, LAYOUT, "image/origin", "origin", "image")
    for where, (name, face, *box, confidence, code) in read_table(table, 8):
        try:
            top, left, right, bottom = (int(value) for value in box)
        except ValueError as error:
            raise DataError(f"{where}: the box must be whole numbers ({error})") from error
        meta = {"photo": name, **finite(where, confidence=confidence)}
        if Path(name).name != name:
            raise DataError(f"{where}: {name!r} must be a file's name")
        if top >= bottom or left >= right:
            raise DataError(f"{where}: the box {' '.join(box)} is empty; the order is top left right bottom")
        picture = _crop(photos / name, top, left, right, bottom)
        yield Record(f"{Path(name).stem}-{face}", picture, emotion=coded(where, CODES, code), subject=name, meta=meta)


def _crop(photo: Path, top: int, left: int, right: int, bottom: int) -> "Callable[[], ndarray]":
    def make() -> "ndarray":
        from portraitkit.pictures.images import read_image, to_uint8

        pixels = to_uint8(read_image(photo).pixels)
        high, wide = round(MARGIN * (bottom - top)), round(MARGIN * (right - left))
        face = pixels[max(top - high, 0) : max(bottom + high, 0), max(left - wide, 0) : max(right + wide, 0)]
        if not face.size:
            raise ImageError(f"{photo}: the face's box lies outside the picture")
        return face

    return make


ADAPTER = Adapter("expw", LAYOUT, _read)
