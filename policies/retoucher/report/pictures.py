"""The photos of a report: which are shown first, and what is shown of each."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from policies.retoucher.evaluate import Evaluation, EvaluationSet
from policies.retoucher.report.results import Photo
from portraitkit.pictures.images import read_image, to_pil, write_image
from portraitkit.report.page import Tile, data_uri, in_percent, tile, zoom_box

KINDS = {"input": "Input", "base": "Base", "aligned": "Aligned", "clean": "Clean reference"}


@dataclass(frozen=True)
class Figure:
    """Everything shown of one photo; `box` is the zoomed square as left, top, width, height in percent, or None."""

    photo: Photo
    label: str
    tiles: list[Tile]
    box: tuple[float, float, float, float] | None = None


def ranked(photos: Sequence[Photo]) -> list[Photo]:
    """Largest gain first; photos without a gain last."""
    return sorted(photos, key=lambda photo: (not math.isfinite(photo.gain), -photo.gain if math.isfinite(photo.gain) else 0.0, photo.row))


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
    tiles = [tile(KINDS[kind], picture, source, box, kind=kind) for kind, picture in pictures.items()]
    return Figure(photo, label, tiles, in_percent(box, source.size))


def plain_figure(folder: Path, photo: Photo, label: str) -> Figure | None:
    """A photo without zooms and difference maps, compressed a little; None where its pictures are not in the folder."""
    pictures = _read(folder, photo.row)
    if pictures is None:
        return None
    return Figure(photo, label, [Tile(KINDS[kind], data_uri(picture, lossless=0), kind=kind) for kind, picture in pictures.items()])


def write_overview(folder: Path, target: Path, *, photos: int = 4, side: int = 240) -> None:
    """One picture of a run: its first held-out photos (not chosen by result), a row each, enlarged by Lanczos."""
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


def _read(folder: Path, row: int) -> dict[str, Image.Image] | None:
    paths = {kind: folder / f"{row:03d}_{kind}.png" for kind in KINDS}
    if not all(paths[kind].is_file() for kind in ("input", "base", "aligned")):
        return None
    return {kind: to_pil(read_image(path).pixels) for kind, path in paths.items() if path.is_file()}


def write_pictures(folder: Path, data: EvaluationSet, base: Evaluation, aligned: Evaluation) -> None:
    """Write the photos of an evaluation as `<row>_<kind>.png`, and what was measured on each as `values.jsonl`."""
    folder.mkdir(exist_ok=True)
    photos = data.batch.photos
    lines = []
    for row, name in enumerate(data.batch.ids):
        pictures = {"input": photos.source[row], "base": base.pictures[row], "aligned": aligned.pictures[row]}
        if not photos.clean[row].isnan().any():
            pictures["clean"] = photos.clean[row]
        for kind, pixels in pictures.items():
            write_image(folder / f"{row:03d}_{kind}.png", pixels)
        values = {
            when: {key: None if math.isnan(v := float(value[row])) else v for key, value in evaluation.values.items()}
            for when, evaluation in (("before", base), ("after", aligned))
        }
        lines.append(json.dumps({"id": name, "person": data.batch.people[row], **values}))
    (folder / "values.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
