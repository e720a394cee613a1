"""`report.html` of a benchmark: one file without outside requests, everything escaped."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from PIL import Image, ImageChops

from benchmarks.inputs import Item
from benchmarks.metric import Metric
from benchmarks.stats import LEAST_EFFECT
from benchmarks.tables import PUBLISHED, Analysis, cells, decimals, figure, gained
from portraitkit.errors import ImageError
from portraitkit.pictures.images import read_image, to_pil
from portraitkit.report.charts import Interval, IntervalPlot, distribution, matrix
from portraitkit.report.page import AMPLIFY, Box, Tile, in_percent, tile, write_page, zoom_box

LARGEST = 384
LOSSLESS = 160
MOST = 16  # Photos with pictures in a report; metrics beyond them name their cases without a picture


def write_report(folder: Path, analysis: Analysis) -> Path:
    """Write the report into the run's folder; returns its path."""
    template = Path(__file__).parent / "templates" / "benchmark.html.j2"
    filters = {"percent": lambda share: f"{100 * share:.0f} %", "gain": lambda value: f"{value:+.{decimals(value, value)}f}"}
    return write_page(folder / "report.html", template, _context(analysis), **filters)


def _context(analysis: Analysis) -> dict[str, Any]:
    results, table = analysis.results, analysis.table
    chosen = extremes(analysis)
    names = list(table.methods)
    return {
        "title": "Portrait benchmark: " + ", ".join(names),
        "methods": names,
        "photos": len(table.names),
        "verdicts": analysis.sides(),
        "too_few": analysis.too_few(),
        "metrics": [{"metric": metric, "cells": cells(analysis, metric)} for metric in results.metrics],
        "comparisons": [(entry, *gained(entry)) for entry in analysis.comparisons],
        "effects": _effects(analysis),
        "least": LEAST_EFFECT,
        "plots": [(metric, _distribution(analysis, metric)) for metric in results.metrics if metric.name in table.values],
        "groups": _groups(analysis),
        "extremes": chosen,
        "signs": {metric.name: metric.arrow for metric in results.metrics},
        "cases": show_cases(analysis, chosen),
        "amplify": AMPLIFY,
        "spearman": matrix(analysis.names, analysis.spearman, low=-1, high=1, title="Spearman's correlation"),
        "agreement": matrix(analysis.names, analysis.agreement, low=0, high=1, title="Share of equal verdicts") if len(names) > 1 else "",
        "accuracy": analysis.accuracy,
        "published": PUBLISHED,
        "note": PUBLISHED["note"],
        "skipped": results.skipped,
        "failed": results.failed[:20],
        "failures": len(results.failed),
        "left_out": results.inputs.notes,
        "weights": [(metric, results.weights[metric.name]) for metric in results.metrics],
    }


def _effects(analysis: Analysis) -> list[tuple[str, IntervalPlot]]:
    """For every two methods, the gains as a plot: to the right is better, in standard deviations that photos have."""
    pairs: dict[str, list[Interval]] = {}
    for entry in analysis.comparisons:
        if not (0 < entry.effect < math.inf and math.isfinite(entry.ci95[0])):
            continue
        scale = (1 if entry.better else -1) * entry.effect / entry.gain
        low, high = sorted(scale * end for end in entry.ci95)
        words = f"{scale * entry.gain:+.2f}"
        line = Interval(entry.metric, scale * entry.gain, low, high, words, strong=entry.verdict != "undecided")
        pairs.setdefault(f"{entry.after} against {entry.before}", []).append(line)
    ticks = [(-2.0, "-2"), (-1.0, "worse"), (0.0, "0"), (1.0, "better"), (2.0, "+2")]
    return [(pair, IntervalPlot(lines, ticks, 0.0, f"Gains of {pair}")) for pair, lines in pairs.items()]


def _distribution(analysis: Analysis, metric: Metric) -> Markup:
    entries = [analysis.mean(metric.name, method) for method in analysis.table.methods]
    means = [(entry.mean, *entry.ci95) if entry and all(map(math.isfinite, entry.ci95)) else None for entry in entries]
    values = analysis.table.values[metric.name].numpy()
    return distribution(f"Distribution of {metric.name}", analysis.table.methods, values, means, decimals)


def _groups(analysis: Analysis) -> list[dict[str, Any]]:
    """One table a kind of group: rows are metric and value, columns the methods."""
    out: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
    for row in analysis.groups:
        cells = out.setdefault(row["group"], {}).setdefault((row["metric"], row["value"]), {})
        mean, half = figure(row["mean"], row["ci95"])
        cells[row["method"]] = {"mean": mean, "half": half, "worst": row["worst"], "n": row["n"]}
    return [{"group": group, "rows": rows} for group, rows in out.items()]


# ---- the photos shown: those on which each metric sees the largest gain and the largest loss


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
    if all(ImageChops.difference(source, picture.resize(source.size)).getbbox() is not None for picture in pictures.values()):
        tiles.insert(0, _tile(_title("photo", "--source", pictures), source, source, box))
    if reference is not None:
        tiles.append(_tile(_title("reference", "--reference", pictures), reference, source, box))
    return Case(name, place, tiles, in_percent(box, source.size), tiles[0], of_method[items[-1].method], reasons)


def _tile(title: str, picture: Image.Image, source: Image.Image, box: Box) -> Tile:
    return tile(title, picture.resize(source.size, Image.Resampling.LANCZOS), source, box, lossless=LOSSLESS)


def _title(kind: str, option: str, methods: Collection[str]) -> str:
    """What is written over the photo and the reference; a method may be called so, too."""
    return f"{kind} ({option})" if kind in methods else kind


def _small(pixels: torch.Tensor) -> Image.Image:
    picture = to_pil(pixels)
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return picture
