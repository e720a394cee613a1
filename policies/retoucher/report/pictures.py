"""The pictures of a report: which photos are shown first, where to zoom in, what changed; all inlined as data."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from portraitkit.pictures.images import read_image, to_pil

KINDS = {"input": "Input", "base": "Base", "aligned": "Aligned", "clean": "Clean reference"}
AMPLIFY = 4
LARGEST = 512
LOSSLESS = 256


@dataclass(frozen=True)
class Photo:
    """A held-out photo: its place in the set, its name, what was measured on the base's and the aligned retouch."""

    row: int
    name: str
    before: Mapping[str, float]
    after: Mapping[str, float]

    @property
    def gain(self) -> float:
        """Change of the reward; not finite where one of the two could not be scored."""
        return self.after.get("reward", math.nan) - self.before.get("reward", math.nan)


@dataclass(frozen=True)
class Tile:
    """One column of a photo's figure, as data URIs: the picture; where asked for, zoom and difference."""

    kind: str
    title: str
    picture: str
    zoom: str = ""
    difference: str = ""


@dataclass(frozen=True)
class Figure:
    """Everything shown of one photo; `box` is the zoomed square as left, top, width, height in percent, or None."""

    photo: Photo
    label: str
    tiles: list[Tile]
    box: tuple[float, float, float, float] | None = None


def ranked(photos: Sequence[Photo]) -> list[Photo]:
    """Largest gain first; photos without a gain last."""
    return sorted(
        photos,
        key=lambda photo: (not math.isfinite(photo.gain), -photo.gain if math.isfinite(photo.gain) else 0.0, photo.row),
    )


def featured(photos: Sequence[Photo], each: int = 3) -> list[tuple[str, Photo]]:
    """`each` of the best, the middle and the worst by gain, labelled with their rank; all where there are few."""
    order = ranked(photos)
    count = len(order)
    each = min(each, -(-count // 3))
    middle = (count - each) // 2
    places = {place: "best" for place in range(each)}
    places |= {place: "worst" for place in range(count - each, count) if place not in places}
    places |= {place: "median" for place in range(middle, middle + each) if place not in places}
    return [(f"{places[place]}, rank {place + 1} of {count}", order[place]) for place in sorted(places)]


def full_figure(folder: Path, photo: Photo, label: str) -> Figure | None:
    """A photo with zooms and difference maps; None where its pictures are not in the folder."""
    pictures = _read(folder, photo.row)
    if pictures is None:
        return None
    source = pictures["input"]
    box = zoom_box(source, pictures.get("clean", pictures["aligned"]))
    tiles = []
    for kind, picture in pictures.items():
        zoomed = picture.crop(box)
        scale = max(1, round(LOSSLESS / zoomed.width))
        zoomed = zoomed.resize((zoomed.width * scale, zoomed.height * scale), Image.Resampling.BICUBIC)
        difference = "" if kind == "input" else _encode(_difference(picture, source))
        tiles.append(Tile(kind, KINDS[kind], _encode(picture), _encode(zoomed), difference))
    left, top, right, bottom = box
    width, height = source.size
    percent = (100 * left / width, 100 * top / height, 100 * (right - left) / width, 100 * (bottom - top) / height)
    return Figure(photo, label, tiles, percent)


def plain_figure(folder: Path, photo: Photo, label: str) -> Figure | None:
    """A photo without zooms and difference maps, compressed a little; None where its pictures are not in the folder."""
    pictures = _read(folder, photo.row)
    if pictures is None:
        return None
    return Figure(photo, label, [Tile(kind, KINDS[kind], _encode(picture, lossless=0)) for kind, picture in pictures.items()])


def write_overview(folder: Path, target: Path, *, photos: int = 4, side: int = 240) -> None:
    """One picture of a run: its first held-out photos (not chosen by result), a row each, enlarged by Lanczos.

    Args:
        folder: the run's `held_out`.
        target: the PNG file to write.
        photos: rows at most.
        side: of each picture, in pixels.
    """
    rows = [pictures for row in range(photos) if (pictures := _read(folder, row)) is not None]
    kinds = [kind for kind in KINDS if rows and all(kind in pictures for pictures in rows)]
    gap, head = 4, 28
    sheet = Image.new("RGB", (len(kinds) * (side + gap) - gap, head + len(rows) * (side + gap) - gap), "white")
    draw = ImageDraw.Draw(sheet)
    for column, kind in enumerate(kinds):
        draw.text((column * (side + gap) + side / 2, head / 2), KINDS[kind], fill="black", font=ImageFont.load_default(16), anchor="mm")
        for number, pictures in enumerate(rows):
            enlarged = pictures[kind].resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(enlarged, (column * (side + gap), head + number * (side + gap)))
    sheet.save(target)


def zoom_box(source: Image.Image, reference: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the square, a third of the shorter side, where the two pictures differ most."""
    side = max(1, min(source.size) // 3)
    change = ImageChops.difference(source, reference).convert("L").filter(ImageFilter.GaussianBlur(side / 4))
    half = side // 2
    inside = np.asarray(change, dtype=np.int32)[half : source.height - side + half + 1, half : source.width - side + half + 1]
    top, left = (int(place) for place in np.unravel_index(inside.argmax(), inside.shape))
    return left, top, left + side, top + side


def _read(folder: Path, row: int) -> dict[str, Image.Image] | None:
    paths = {kind: folder / f"{row:03d}_{kind}.png" for kind in KINDS}
    if not all(paths[kind].is_file() for kind in ("input", "base", "aligned")):
        return None
    return {kind: to_pil(read_image(path).pixels) for kind, path in paths.items() if path.is_file()}


def _difference(picture: Image.Image, source: Image.Image) -> Image.Image:
    """Picture minus source, amplified, around middle grey."""
    return ImageChops.subtract(picture, source, scale=1 / AMPLIFY, offset=128)


def _encode(picture: Image.Image, *, lossless: int = LOSSLESS) -> str:
    """A data URI: PNG up to `lossless` px, else JPEG of high quality, no larger than a report needs."""
    kind, options = "png", {}
    if max(picture.size) > lossless:
        kind, options = "jpeg", {"quality": 93, "subsampling": 0}
        picture = picture.copy()
        picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    data = BytesIO()
    picture.save(data, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
