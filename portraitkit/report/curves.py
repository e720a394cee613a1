"""Curves of a run as inline SVG that follows the page's colours.

Drawn by matplotlib's own figures, never through pyplot, so that nothing global is touched and no display is needed.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import cycle
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, ScalarFormatter

INK, MUTED, ACCENT, LINE = "#010203", "#040506", "#070809", "#0a0b0c"
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", ACCENT: "var(--accent)", LINE: "var(--line)"}
"""Stand-in colours, replaced by the page's CSS variables once the SVG is drawn: light and dark mode for free."""

FLOOR_DASHES = ((3, 3), (7, 2, 1, 2))
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
    "xtick.major.width": 0.6,
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Series:
    """One line of a plot; points whose y is not finite are left out.

    Attributes:
        x: training steps.
        y: one value a step.
        low: lower end of each interval, or empty.
        high: upper end of each interval, or empty.
        kind: a line with a dot at every value, a plain line, or dots alone.
        colour: accent, or the quieter muted.
    """

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    kind: Literal["measured", "line", "dots"] = "measured"
    colour: Literal["accent", "muted"] = "accent"


@dataclass(frozen=True)
class Reference:
    """A value from elsewhere, drawn as a labelled line across the plot.

    Attributes:
        value: on the y axis.
        label: written along the line; plain words, no data of users.
    """

    value: float
    label: str


def curve_svg(
    series: Sequence[Series],
    *,
    mark: float | None = None,
    floors: Sequence[float] = (),
    references: Sequence[Reference] = (),
    log: bool = False,
    least_span: float = 0.0,
) -> str:
    """Draw lines over training steps.

    Args:
        series: the lines, drawn in order.
        mark: a step to mark by a dashed line.
        floors: values to mark by lines across the plot: the first dashed, the second dash-dot, and so on in turn.
        references: values to mark by dotted lines with their labels.
        log: logarithmic y axis where any value is above 0; those at or below 0 are then left out.
        least_span: smallest extent of the y axis, so that noise is not blown up to a trend.

    Returns:
        An `<svg>` element with numbers, and labels of references, as its only text; empty where no value can be drawn.
    """
    log = log and any(y > 0 for one in series for y in one.y)
    shown = [part for part in (_drawable(one, log) for one in series) if part.x]
    if not shown:
        return ""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.3, 1.75))
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.13, 0.13, 0.84, 0.82))
        for one in shown:
            _draw(axes, one)
        if log:
            axes.set_yscale("log")
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
            low, high = _reach(axes.get_ylim(), [*floors, *(one.value for one in references)])
            high += 0.1 * (high - low) * bool(references)  # for the label
            missing = max(0.0, least_span - (high - low)) / 2
            axes.set_ylim(low - missing, high + missing)
            if max(abs(low), abs(high)) < 1e-3:
                axes.yaxis.set_major_formatter(FuncFormatter(_scientific))
        for floor, dashes in zip(floors, cycle(FLOOR_DASHES)):
            axes.axhline(floor, color=MUTED, linewidth=0.8, dashes=dashes, zorder=1)
        for one in references:
            axes.axhline(one.value, color=MUTED, linewidth=1.0, dashes=(1, 2), zorder=1)
            first = one.value == max(reference.value for reference in references)  # a curve that rises leaves these two corners free
            axes.annotate(
                one.label,
                (0 if first else 1, one.value),
                (2, 2) if first else (-2, -3),
                xycoords=axes.get_yaxis_transform(),
                textcoords="offset points",
                ha="left" if first else "right",
                va="bottom" if first else "top",
                color=MUTED,
                fontsize=7,
            )
        if mark is not None:
            axes.axvline(mark, color=MUTED, linewidth=0.8, dashes=(3, 3), zorder=1)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=(1, 2, 5, 10)))
        first, last = min(min(one.x) for one in shown), max(max(one.x) for one in shown)
        pad = max(0.02 * (last - first), 0.5 if first == last else 0.0)
        axes.set_xlim(first - pad, last + pad)
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_color(LINE)
        axes.tick_params(colors=MUTED, which="both", pad=2)
        axes.tick_params(axis="y", which="minor", size=0, labelsize=0, labelcolor="none")
        text = StringIO()
        mpl.rcParams["svg.hashsalt"] = repr(shown)  # clip paths of two plots of a page must not share an id
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _inline(text.getvalue())


def _reach(limits: tuple[float, float], values: Sequence[float]) -> tuple[float, float]:
    """Limits of the y axis that hold the values, too, with a little room beyond those that lie outside."""
    low, high = min([limits[0], *values]), max([limits[1], *values])
    room = 0.05 * (high - low)
    return low - room * (low < limits[0]), high + room * (high > limits[1])


def _drawable(one: Series, log: bool) -> Series:
    keep = [i for i, y in enumerate(one.y) if math.isfinite(y) and (y > 0 or not log)]
    low = [one.low[i] for i in keep] if one.low else []
    high = [one.high[i] for i in keep] if one.high else []
    return Series([one.x[i] for i in keep], [one.y[i] for i in keep], low, high, one.kind, one.colour)


def _draw(axes: Axes, one: Series) -> None:
    colour = ACCENT if one.colour == "accent" else MUTED
    if one.low and len(one.x) > 1:
        axes.fill_between(one.x, one.low, one.high, color=colour, alpha=0.18, linewidth=0)
    elif one.low:
        axes.vlines(one.x, one.low, one.high, color=colour, alpha=0.5, linewidth=1.2)
    line: dict[str, Any] = {"linewidth": 0} if one.kind == "dots" else {"linewidth": 1.6 if one.kind == "measured" else 1.0}
    dots: dict[str, Any] = {} if one.kind == "line" and len(one.x) > 1 else {"marker": "o", "markersize": 3.2, "markeredgewidth": 0}
    axes.plot(one.x, one.y, color=colour, solid_capstyle="round", solid_joinstyle="round", **line, **dots)


def _scientific(value: float, _: int | None) -> str:
    return ("−" if value < 0 else "") + f"{abs(value):.1e}".replace("e-0", "e-") if value else "0"


def _inline(svg: str) -> str:
    """The bare element: no prologue, metadata, style sheet, namespaces or fixed size, and colours as CSS variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:xmlns(?::\w+)?|version)="[^"]*"', "", svg)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', svg, count=1)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.strip()
