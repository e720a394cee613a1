"""Curves and charts as inline SVG in the page's own colours (its CSS variables, light and dark); every text is escaped."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal

import numpy as np
from markupsafe import Markup

INK, MUTED, ACCENT, LINE, TINT, PAGE = (f"var(--{name})" for name in ("ink", "muted", "accent", "line", "tint", "page"))
COLOURS = ("#0b7a75", "#c2571a", "#5b53b0", "#a8327d", "#4b7d1f", "#8a6d0b", "#2b6cb0", "#666666")
DASHES = ("3 3", "7 2 1 2")
TICKS = 5


@dataclass(frozen=True)
class Series:
    """One line of a plot; points whose y is not finite are left out."""

    x: Sequence[float]  # training steps
    y: Sequence[float]  # one value a step
    low: Sequence[float] = ()  # lower end of each interval, or empty
    high: Sequence[float] = ()  # upper end of each interval, or empty
    kind: Literal["measured", "line", "dots"] = "measured"  # a line with a dot at every value, a plain line, or dots alone
    colour: Literal["accent", "muted"] = "accent"  # accent, or the quieter muted


def series_of(rows: Sequence[Mapping[str, Any]], name: str, **options: Any) -> Series:
    """A logged value over the training steps; `options` are the other fields of the line."""
    return Series([as_float(row.get("step")) for row in rows], [as_float(row.get(name)) for row in rows], **options)


def as_float(value: object) -> float:
    """A logged value as a float; not finite where it is null or no number."""
    return float(value) if isinstance(value, int | float) else math.nan


@dataclass(frozen=True)
class Reference:
    """A value from elsewhere, drawn as a labelled line across the plot."""

    value: float
    label: str


@dataclass(frozen=True)
class Interval:
    """A line of an interval plot, a point alone where `low` or `high` is None; `strong` draws it in the accent colour."""

    label: str
    value: float
    low: float | None
    high: float | None
    words: str
    strong: bool = False


@dataclass(frozen=True)
class IntervalPlot:
    """Lines one below the other, as the macro `intervals` draws them."""

    rows: Sequence[Interval]
    ticks: Sequence[tuple[float, str]]  # position and label, in order; the first and the last are the ends of the axis
    middle: float  # where there is no preference
    title: str  # for those who cannot see it

    def percent(self, value: float) -> float:
        """A place along the axis; what lies beyond an end is at the end."""
        start, end = self.ticks[0][0], self.ticks[-1][0]
        return round(100 * (min(max(value, start), end) - start) / (end - start), 2)


class Canvas:
    """An SVG that elements are added to; it scales with the room that the page gives it."""

    def __init__(self, width: float, height: float, label: str = "", **attributes: Any) -> None:
        box = {"viewBox": f"0 0 {width:g} {height:g}", "role": "img"} | ({"aria_label": label} if label else {}) | attributes
        self.parts = [Markup("<svg{}>").format(_attributes(box))]

    def add(self, tag: str, text: str = "", **attributes: Any) -> None:
        """Add an element; numbers get one decimal, an underscore inside a name is a hyphen (`class_` is `class`)."""
        self.parts.append(Markup("<{}{}>{}</{}>").format(tag, _attributes(attributes), text, tag))

    def path(self, points: Sequence[tuple[float, float]], *, close: bool = False, **attributes: Any) -> None:
        """Add straight lines from point to point."""
        corners = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.add("path", d=f"M{corners}{'Z' if close else ''}", **attributes)

    def svg(self) -> Markup:
        return Markup("").join([*self.parts, Markup("</svg>")])


def _attributes(values: Mapping[str, object]) -> Markup:
    shown = ((key.rstrip("_").replace("_", "-"), f"{value:.1f}" if isinstance(value, float) else value) for key, value in values.items())
    return Markup("").join(Markup(' {}="{}"').format(key, value) for key, value in shown)


# ---- curves over training steps


def curve_svg(
    series: Sequence[Series],
    *,
    mark: float | None = None,
    floors: Sequence[float] = (),
    references: Sequence[Reference] = (),
    log: bool = False,
    least_span: float = 0.0,
) -> Markup:
    """Draw lines over training steps; returns an `<svg>` element; empty where no value can be drawn.

    A dashed line marks the step `mark`; lines across the plot mark `floors`, the first dashed, the second dash-dot, and so on in turn;
    dotted lines with their labels mark `references`. With `log` the y axis is logarithmic where any value is above 0; those at or below 0
    are then left out. `least_span` is the smallest extent of the y axis, so that noise is not blown up to a trend.
    """
    log = log and any(y > 0 for one in series for y in one.y)
    shown = [one for one in (_drawable(one, log) for one in series) if one.x]
    if not shown:
        return Markup("")
    first, last = min(min(one.x) for one in shown), max(max(one.x) for one in shown)
    low, high = _limits(shown, [*floors, *(one.value for one in references)], log, least_span)
    high += 0.1 * (high - low) * bool(references)  # for the label
    decades = range(int(low), int(high) + 1, max(1, math.ceil((high - low) / TICKS))) if log else ()
    labels = {10.0**exponent: f"1e{exponent}" for exponent in decades} if log else _ticks(low, high)
    width, height, right, top, bottom = 240.0, 126.0, 236.0, 5.0, 110.0
    left = 8 + 4.8 * max(map(len, labels.values()), default=0)
    pad = max(0.02 * (last - first), 0.5 if first == last else 0.0)

    def x_of(value: float) -> float:
        return left + (right - left) * (value - first + pad) / (last - first + 2 * pad)

    def y_of(value: float) -> float:
        return bottom - (bottom - top) * ((math.log10(value) if log else value) - low) / (high - low)

    canvas = Canvas(width, height)
    for value, label in labels.items():
        y = y_of(value)
        canvas.path([(left, y), (right, y)], stroke=LINE, stroke_width=0.6)
        canvas.add("text", label, x=left - 4, y=y + 2.7, text_anchor="end", font_size=8, fill=MUTED, class_="y")
    canvas.path([(left, bottom), (right, bottom)], stroke=LINE, stroke_width=0.6)
    for value, label in _ticks(first, last, most=6, whole=True).items():
        canvas.add("text", label, x=x_of(value), y=bottom + 11, text_anchor="middle", font_size=8, fill=MUTED, class_="x")
    for value, dashes in zip(floors, cycle(DASHES)):
        canvas.path([(left, y_of(value)), (right, y_of(value))], stroke=MUTED, stroke_width=0.8, stroke_dasharray=dashes)
    for one in references:
        y = y_of(one.value)
        canvas.path([(left, y), (right, y)], stroke=MUTED, stroke_dasharray="1 2")
        highest = one.value == max(reference.value for reference in references)  # a curve that rises leaves these two corners free
        place = {"x": left + 2, "y": y - 3} if highest else {"x": right - 2, "y": y + 8, "text_anchor": "end"}
        canvas.add("text", one.label, font_size=7, fill=MUTED, **place)
    if mark is not None:
        canvas.path([(x_of(mark), top), (x_of(mark), bottom)], stroke=MUTED, stroke_width=0.8, stroke_dasharray=DASHES[0])
    for one in shown:
        _draw(canvas, one, x_of, y_of)
    return canvas.svg()


def _drawable(one: Series, log: bool) -> Series:
    keep = [i for i, y in enumerate(one.y) if math.isfinite(y) and (y > 0 or not log)]
    low = [one.low[i] for i in keep] if one.low else []
    high = [one.high[i] for i in keep] if one.high else []
    return Series([one.x[i] for i in keep], [one.y[i] for i in keep], low, high, one.kind, one.colour)


def _limits(shown: Sequence[Series], marked: Sequence[float], log: bool, least_span: float) -> tuple[float, float]:
    """Ends of the y axis with a little room beyond the values; exponents of 10 where it is logarithmic."""
    values = [*marked, *(value for one in shown for ends in (one.y, one.low, one.high) for value in ends if math.isfinite(value))]
    if log:
        exponents = [math.log10(value) for value in values if value > 0]
        return math.floor(min(exponents)), max(math.ceil(max(exponents)), math.floor(min(exponents)) + 1)
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    low, high = low - room, high + room
    missing = max(0.0, least_span - (high - low)) / 2
    return low - missing, high + missing


def _ticks(low: float, high: float, *, most: int = TICKS, whole: bool = False) -> dict[float, str]:
    """Round values between two ends, `most` or fewer steps of 1, 2 or 5 times a power of ten, and how they are written."""
    raw = (high - low) / most or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    step = max(1.0, step) if whole else step
    values = [place * step for place in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    largest = max(abs(low), abs(high))
    if largest < 1e-3 or largest >= 1e6:
        written = ((value, f"{value:.1e}".replace("-", "−", value < 0).replace("e-0", "e-").replace("e+0", "e")) for value in values)
        return {value: text if value else "0" for value, text in written}
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return {value: f"{value:.{digits}f}".replace("-", "−") for value in values}


def _draw(canvas: Canvas, one: Series, x_of: Callable[[float], float], y_of: Callable[[float], float]) -> None:
    colour = ACCENT if one.colour == "accent" else MUTED
    points = [(x_of(x), y_of(y)) for x, y in zip(one.x, one.y, strict=True)]
    ends = [(x_of(x), y_of(low), y_of(high)) for x, low, high in zip(one.x, one.low, one.high, strict=False) if math.isfinite(low + high)]
    if len(ends) > 1:
        band = [(x, high) for x, _, high in ends] + [(x, low) for x, low, _ in reversed(ends)]
        canvas.path(band, close=True, fill=colour, fill_opacity=".18")
    for x, low, high in ends if len(ends) == 1 else ():
        canvas.path([(x, low), (x, high)], stroke=colour, stroke_opacity=".5", stroke_width=1.2)
    if one.kind != "dots" and len(points) > 1:
        canvas.path(points, fill="none", stroke=colour, stroke_width=1.6 if one.kind == "measured" else 1.0)
    if one.kind != "line" or len(points) == 1:
        for x, y in points:
            canvas.add("circle", cx=x, cy=y, r=1.6, fill=colour)


# ---- charts of several methods


def colour(place: int) -> str:
    """The colour of a method, by its place."""
    return COLOURS[place % len(COLOURS)]


def distribution(
    label: str, methods: Sequence[str], values: np.ndarray, means: Sequence[tuple[float, float, float] | None], digits: Callable[..., int]
) -> Markup:
    """One row a method: every photo a tick, the middle half a bar, the mean and its interval above it; `label` is for those who cannot see
    it.

    `values` are (photos, methods), NaN where there is none; `means` (mean, low, high) of each method, None where it has no interval;
    `digits` gives the decimals of a value, and of what is small beside it.
    """
    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    pad = (high - low) * 0.04 or 0.5
    low, high = low - pad, high + pad
    width, row, left = 360, 34, 8
    canvas = Canvas(width, row * len(methods) + 22, label)

    def place_of(value: float) -> float:
        return left + (value - low) / (high - low) * (width - 2 * left)

    for place, method in enumerate(methods):
        column = values[:, place][np.isfinite(values[:, place])]
        y, paint = place * row + 18, colour(place)
        canvas.add("text", method, x=left, y=y - 6, font_size="10.5", fill=MUTED)
        if not len(column):
            continue
        shown = column if len(column) <= 400 else np.quantile(column, np.linspace(0, 1, 400))
        ticks = "".join(f"M{place_of(float(value)):.1f} {y}v12" for value in shown)
        canvas.add("path", d=ticks, stroke=paint, stroke_opacity=".35", stroke_width=1.2, fill="none")
        start, end = (place_of(float(quantile)) for quantile in np.quantile(column, (0.25, 0.75)))
        canvas.add("rect", x=start, y=y + 3, width=max(end - start, 1.0), height=6, rx=2, fill=paint, fill_opacity=".3")
        if (mean := means[place]) is not None:
            middle, start, end = map(place_of, mean)
            canvas.path([(start, y + 6), (end, y + 6)], stroke=paint, stroke_width=2.5)
            canvas.add("circle", cx=middle, cy=y + 6, r=4, fill=paint, stroke=PAGE, stroke_width=1.5)
    places = digits(high, (high - low) / 10)
    for value, anchor, x in ((low, "start", left), (high, "end", width - left)):
        canvas.add("text", f"{value:.{places}f}", x=x, y=row * len(methods) + 18, text_anchor=anchor, font_size=10, fill=MUTED)
    return canvas.svg()


def matrix(names: Sequence[str], values: np.ndarray, *, low: float, high: float, title: str) -> Markup:
    """A square of numbers, green towards `high` and orange towards `low`; empty below two names."""
    if len(names) < 2:
        return Markup("")
    cell, left, top = 34, 150, 128
    canvas = Canvas(left + cell * len(names) + 70, top + cell * len(names) + 6, title)
    for i, name in enumerate(names):
        x, y = left + cell * i + cell / 2, top + cell * i + cell / 2
        canvas.add("text", name, x=left - 8, y=y + 4, text_anchor="end", font_size=11, fill=INK)
        canvas.add("text", name, x=x, y=top - 8, font_size=11, fill=INK, transform=f"rotate(-45 {x:.1f} {top - 8})")
        for j, value in enumerate(values[i].tolist()):
            x = left + cell * j
            share = (value - (low + high) / 2) / ((high - low) / 2)
            paint = {"fill": COLOURS[0] if share > 0 else COLOURS[1], "fill_opacity": f"{min(1.0, abs(share)) * 0.75:.2f}"}
            finite = math.isfinite(value)
            canvas.add("rect", x=x, y=y - cell / 2, width=cell - 1, height=cell - 1, **(paint if finite else {"fill": TINT}))
            if finite:
                canvas.add("text", f"{value:.2f}", x=x + cell / 2 - 0.5, y=y + 4, text_anchor="middle", font_size=10, fill=INK)
    return canvas.svg()
