"""The photos shown in a report: those on which each metric sees the largest gain and the largest loss, with crops and difference maps."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from PIL import Image, ImageChops

from benchmarks.inputs import Item
from benchmarks.tables import Analysis
from portraitkit.errors import ImageError
from portraitkit.pictures.images import read_image, to_pil
from portraitkit.report.pictures import Box, Tile, in_percent, tile, zoom_box

LARGEST = 384
LOSSLESS = 160
MOST = 16
"""Photos with pictures in a report; metrics beyond them name their cases without a picture."""


@dataclass(frozen=True)
class Extreme:
    """A metric's best or worst photo: its name, and how much the last method gains on the first there."""

    kind: str
    name: str
    gain: float


@dataclass(frozen=True)
class Case:
    """A photo with everything shown of it; `box` is the zoomed square in percent of the picture: left, top, width, height."""

    name: str
    place: int
    tiles: list[Tile]
    box: tuple[float, float, float, float]
    before: Tile
    after: Tile
    reasons: list[str]


def extremes(analysis: Analysis) -> dict[str, list[Extreme]]:
    """Of each metric the photos with the largest gain and the largest loss between the first and the last method."""
    out: dict[str, list[Extreme]] = {}
    table = analysis.table
    for metric in analysis.results.metrics:
        if metric.name not in table.values:
            continue
        values = table.values[metric.name]
        gains = metric.sign * (values[:, -1] - (values[:, 0] if len(table.methods) > 1 else 0))
        known = [place for place in range(len(table.names)) if math.isfinite(float(gains[place]))]
        if not known:
            continue
        best = max(known, key=lambda place: (float(gains[place]), -place))
        worst = min(known, key=lambda place: (float(gains[place]), place))
        pairs = [("best", best)] + ([("worst", worst)] if worst != best else [])
        out[metric.name] = [Extreme(kind, table.names[place], metric.sign * float(gains[place])) for kind, place in pairs]
    return out


def show_cases(analysis: Analysis, chosen: Mapping[str, list[Extreme]]) -> dict[str, Case]:
    """The pictures of the chosen photos, each photo once; at most 16, those that most metrics name first."""
    reasons: dict[str, list[str]] = {}
    for metric, pair in chosen.items():
        for extreme in pair:
            reasons.setdefault(extreme.name, []).append(f"{extreme.kind} by {metric}")
    order = sorted(reasons, key=lambda name: (-len(reasons[name]), name))[:MOST]
    of_name: dict[str, list[Item]] = {name: [] for name in order}
    for item in analysis.results.inputs.items:
        if item.name in of_name:
            of_name[item.name].append(item)
    cases = {}
    for place, name in enumerate(order):
        try:
            cases[name] = _case(name, place, of_name[name], reasons[name])
        except ImageError:
            continue  # it is in failed.jsonl
    return cases


def _case(name: str, place: int, items: list[Item], reasons: list[str]) -> Case:
    pictures = {item.method: _small(read_image(item.path).pixels) for item in items}
    first = items[0]
    source = _small(read_image(first.source).pixels) if first.source else next(iter(pictures.values()))
    source = source.resize(next(iter(pictures.values())).size, Image.Resampling.LANCZOS)
    reference = _small(read_image(first.reference).pixels) if first.reference else None
    last = list(pictures.values())[-1].resize(source.size, Image.Resampling.LANCZOS)
    box = zoom_box(source, (last if reference is None else reference).resize(source.size, Image.Resampling.LANCZOS))
    of_method = {method: _tile(method, picture, source, box) for method, picture in pictures.items()}
    tiles = list(of_method.values())
    if _none_equal(source, pictures):
        tiles.insert(0, _tile(_title("photo", "--source", pictures), source, source, box))
    if reference is not None:
        tiles.append(_tile(_title("reference", "--reference", pictures), reference, source, box))
    return Case(name, place, tiles, in_percent(box, source.size), tiles[0], of_method[items[-1].method], reasons)


def _tile(title: str, picture: Image.Image, source: Image.Image, box: Box) -> Tile:
    return tile(title, picture.resize(source.size, Image.Resampling.LANCZOS), source, box, lossless=LOSSLESS)


def _title(kind: str, option: str, methods: Collection[str]) -> str:
    """What is written over the photo and the reference; a method may be called so, too."""
    return f"{kind} ({option})" if kind in methods else kind


def _none_equal(source: Image.Image, pictures: Mapping[str, Image.Image]) -> bool:
    return all(ImageChops.difference(source, picture.resize(source.size)).getbbox() is not None for picture in pictures.values())


def _small(pixels: torch.Tensor) -> Image.Image:
    picture = to_pil(pixels)
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return picture
