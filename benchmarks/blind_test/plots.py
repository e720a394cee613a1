"""Plots of the report: HTML and inline SVG in the page's own colours, as wide as there is room; every text is escaped."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Row:
    """One line of an interval plot, without an interval where `low` or `high` is None; `strong` draws it in the accent colour."""

    label: str
    value: float
    low: float | None
    high: float | None
    words: str
    strong: bool = False


def interval_plot(rows: Sequence[Row], *, ticks: Sequence[tuple[float, str]], middle: float, title: str) -> Markup:
    """Points with their intervals, one below the other.

    Args:
        rows: from top to bottom.
        ticks: (position, label), in order; the first and the last are the ends of the axis.
        middle: where a dashed line stands: no preference.
        title: for those who cannot see it.
    """
    start, end = ticks[0][0], ticks[-1][0]

    def percent(value: float) -> float:
        return round(100 * (min(max(value, start), end) - start) / (end - start), 2)

    lines = [('<i class="tick" style="left: {}%"></i>', percent(position)) for position, _ in ticks]
    lines.append(('<i class="middle" style="left: {}%"></i>', percent(middle)))
    grid = Markup("").join(Markup(line).format(at) for line, at in lines)
    parts = []
    for row in rows:
        reach = Markup("")
        if row.low is not None and row.high is not None:
            low, high = percent(row.low), percent(row.high)
            reach = Markup('<i class="reach" style="left: {}%; width: {}%"></i>').format(low, round(high - low, 2))
        parts.append(
            Markup(
                '<li{}><span class="name">{}</span><span class="words">{}</span>'
                '<span class="track" aria-hidden="true">{}{}<i class="dot" style="left: {}%"></i></span></li>'
            ).format(Markup(' class="strong"') if row.strong else "", row.label, row.words, grid, reach, percent(row.value))
        )
    axis = Markup("").join(Markup('<span style="left: {}%">{}</span>').format(percent(position), words) for position, words in ticks)
    shape = '<ul class="intervals" aria-label="{}">{}<li class="axis" aria-hidden="true"><span class="track">{}</span></li></ul>'
    return Markup(shape).format(title, Markup("").join(parts), axis)


def outcome_bar(wins: int, ties: int, losses: int) -> Markup:
    """One bar: votes for the first, ties, votes for the second."""
    total = max(1, wins + ties + losses)
    a, b = 400 * wins / total, 400 * ties / total
    return Markup(
        '<svg viewBox="0 0 400 18" preserveAspectRatio="none" role="img" aria-label="{words}" class="bar">'
        '<rect width="{a}" height="18" fill="var(--accent)"/><rect x="{a}" width="{b}" height="18" fill="var(--line)"/>'
        '<rect x="{ab}" width="{c}" height="18" fill="var(--muted)"/>'
        '<line x1="200" x2="200" y1="0" y2="18" stroke="var(--page)" stroke-width="2"/></svg>'
    ).format(words=f"{wins} wins, {ties} ties, {losses} losses", a=round(a, 1), b=round(b, 1), ab=round(a + b, 1), c=round(400 - a - b, 1))
