"""Pictures of a report, inlined as data: what is shown of a photo, where to zoom in, what a retouch changed."""

import base64
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageFilter

AMPLIFY = 4  # How much stronger a difference is shown than it is
ZOOMED = 256

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Tile:
    """One column of a photo's figure, as data addresses: the picture; where asked for, zoom and difference from the untouched photo."""

    title: str
    picture: str
    zoom: str = ""
    difference: str = ""
    kind: str = ""


def tile(title: str, picture: Image.Image, source: Image.Image, box: Box, *, kind: str = "", lossless: int = ZOOMED) -> Tile:
    """A picture of the size of the untouched photo `source`, with its zoom; its difference is empty where nothing was changed."""
    zoomed = picture.crop(box)
    scale = max(1, round(ZOOMED / zoomed.width))
    zoomed = zoomed.resize((zoomed.width * scale, zoomed.height * scale), Image.Resampling.BICUBIC)
    changed = ImageChops.difference(picture, source).getbbox() is not None
    difference = data_uri(ImageChops.subtract(picture, source, scale=1 / AMPLIFY, offset=128), lossless=lossless) if changed else ""
    return Tile(title, data_uri(picture, lossless=lossless), data_uri(zoomed, lossless=lossless), difference, kind)


def zoom_box(source: Image.Image, reference: Image.Image) -> Box:
    """Left, top, right, bottom of the square, a third of the shorter side, where the two pictures differ most."""
    side = max(1, min(source.size) // 3)
    change = ImageChops.difference(source, reference).convert("L").filter(ImageFilter.GaussianBlur(side / 4))
    half = side // 2
    inside = np.asarray(change, dtype=np.int32)[half : source.height - side + half + 1, half : source.width - side + half + 1]
    top, left = (int(place) for place in np.unravel_index(inside.argmax(), inside.shape))
    return left, top, left + side, top + side


def in_percent(box: Box, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, width, height of a box in percent of a picture."""
    (left, top, right, bottom), (width, height) = box, size
    return 100 * left / width, 100 * top / height, 100 * (right - left) / width, 100 * (bottom - top) / height


def data_uri(picture: Image.Image | Path, *, largest: int = 512, lossless: int = ZOOMED) -> str:
    """A picture as a data address: PNG up to `lossless` pixels, else JPEG of high quality, scaled down to `largest`."""
    if isinstance(picture, Path):
        with Image.open(picture) as image:
            picture = image.convert("RGB")
    kind, options = "png", {}
    if max(picture.size) > lossless:
        kind, options = "jpeg", {"quality": 93, "subsampling": 0}
        picture = picture.copy()
        picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    data = BytesIO()
    picture.save(data, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
