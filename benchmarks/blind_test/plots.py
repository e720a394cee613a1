"""Plots of the report: inline SVG in the page's own colours, drawn here; every text is escaped."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, ROW, LABEL, VALUE = 720, 34, 190, 150


@dataclass(frozen=True)
class Row:
    """One line of an interval plot; `strong` draws it in the accent colour."""

    label: str
    value: float
    low: float
    high: float
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
    span = WIDTH - LABEL - VALUE

    def x(value: float) -> float:
        return round(LABEL + span * (min(max(value, start), end) - start) / (end - start), 1)

    height = ROW * len(rows) + 30
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}" font-size="14">']
    for position, words in ticks:
        parts.append(f'<line x1="{x(position)}" x2="{x(position)}" y1="0" y2="{height - 26}" stroke="var(--line)"/>')
        parts.append(
            f'<text x="{x(position)}" y="{height - 8}" text-anchor="middle" fill="var(--muted)" font-size="12">{escape(words)}</text>'
        )
    parts.append(f'<line x1="{x(middle)}" x2="{x(middle)}" y1="0" y2="{height - 26}" stroke="var(--muted)" stroke-dasharray="3 3"/>')
    for index, row in enumerate(rows):
        y = ROW * index + ROW / 2
        colour = "var(--accent)" if row.strong else "var(--muted)"
        parts.append(f'<text x="0" y="{y + 5}" fill="var(--ink)">{escape(_short(row.label))}</text>')
        parts.append(
            f'<line x1="{x(row.low)}" x2="{x(row.high)}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3" stroke-linecap="round"/>'
        )
        parts.append(f'<circle cx="{x(row.value)}" cy="{y}" r="6" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH}" y="{y + 5}" text-anchor="end" fill="var(--ink)" font-size="13">{escape(row.words)}</text>')
    return Markup("".join(parts) + "</svg>")


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


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:23]}\u2026"
