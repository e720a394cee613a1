"""The drawings of a benchmark report, as SVG text of our own making: radar, distributions, matrix. Nothing in them comes from outside."""

import html
import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from benchmarks.metric import Metric
from benchmarks.tables import Analysis, decimals

COLOURS = ("#0b7a75", "#c2571a", "#5b53b0", "#a8327d", "#4b7d1f", "#8a6d0b", "#2b6cb0", "#666666")


def colour(place: int) -> str:
    """Of a method, by its place."""
    return COLOURS[place % len(COLOURS)]


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def radar(analysis: Analysis) -> Markup:
    """Every metric an axis; the worst method's mean lies on the inner ring, the best one's on the outer; empty below three metrics."""
    methods = analysis.table.methods
    axes = []
    for metric in analysis.results.metrics:
        values = [entry.mean if (entry := analysis.mean(metric.name, method)) else math.nan for method in methods]
        if all(map(math.isfinite, values)) and max(values) > min(values):
            axes.append((metric, [(metric.sign * value) for value in values]))
    if len(axes) < 3 or len(methods) < 2:
        return Markup("")
    radius, inner, width, height = 165.0, 0.25, 620, 420

    def point(axis: int, share: float) -> tuple[float, float]:
        angle = 2 * math.pi * axis / len(axes) - math.pi / 2
        return width / 2 + radius * share * math.cos(angle), height / 2 + radius * share * math.sin(angle)

    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Radar of all metrics">']
    for ring in (inner, (1 + inner) / 2, 1.0):
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in (point(axis, ring) for axis in range(len(axes))))
        out.append(f'<polygon points="{corners}" fill="none" stroke="var(--line)"/>')
    for axis, (metric, _) in enumerate(axes):
        x, y = point(axis, 1.0)
        out.append(f'<line x1="{width / 2}" y1="{height / 2}" x2="{x:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        x, y = point(axis, 1.09)
        anchor = "middle" if abs(x - width / 2) < 12 else ("start" if x > width / 2 else "end")
        label = f"{metric.name.removeprefix('reward_')}" + (" (reward)" if metric.name.startswith("reward_") else "")
        out.append(f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}" font-size="11" fill="var(--muted)">{_escape(label)}</text>')
    for place in range(len(methods)):
        shares = []
        for _, values in axes:
            low, high = min(values), max(values)
            shares.append(inner + (1 - inner) * (values[place] - low) / (high - low))
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in (point(axis, share) for axis, share in enumerate(shares)))
        out.append(f'<polygon points="{corners}" fill="{colour(place)}" fill-opacity=".1" stroke="{colour(place)}" stroke-width="2"/>')
    return Markup("".join([*out, "</svg>"]))


def distribution(analysis: Analysis, metric: Metric) -> Markup:
    """One row a method: every photo a tick, the middle half a bar, the mean and its interval above it."""
    table = analysis.table.values[metric.name].numpy()
    known = table[np.isfinite(table)]
    low, high = float(known.min()), float(known.max())
    pad = (high - low) * 0.04 or 0.5
    low, high = low - pad, high + pad
    width, row, left = 360, 34, 8
    height = row * len(analysis.table.methods) + 22

    def place_of(value: float) -> float:
        return left + (value - low) / (high - low) * (width - 2 * left)

    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Distribution of {_escape(metric.name)}">']
    for place, method in enumerate(analysis.table.methods):
        values = table[:, place][np.isfinite(table[:, place])]
        y, paint = place * row + 18, colour(place)
        out.append(f'<text x="{left}" y="{y - 6}" font-size="10.5" fill="var(--muted)">{_escape(method)}</text>')
        if not len(values):
            continue
        shown = values if len(values) <= 400 else np.quantile(values, np.linspace(0, 1, 400))
        ticks = "".join(f"M{place_of(v):.1f} {y}v12" for v in shown)
        out.append(f'<path d="{ticks}" stroke="{paint}" stroke-opacity=".35" stroke-width="1.2" fill="none"/>')
        a, b = (place_of(float(q)) for q in np.quantile(values, (0.25, 0.75)))
        out.append(f'<rect x="{a:.1f}" y="{y + 3}" width="{max(b - a, 1):.1f}" height="6" rx="2" fill="{paint}" fill-opacity=".3"/>')
        entry = analysis.mean(metric.name, method)
        if entry is not None and all(map(math.isfinite, entry.ci95)):
            a, m, b = (place_of(v) for v in (entry.ci95[0], entry.mean, entry.ci95[1]))
            out.append(f'<line x1="{a:.1f}" x2="{b:.1f}" y1="{y + 6}" y2="{y + 6}" stroke="{paint}" stroke-width="2.5"/>')
            out.append(f'<circle cx="{m:.1f}" cy="{y + 6}" r="4" fill="{paint}" stroke="var(--page)" stroke-width="1.5"/>')
    digits = decimals(high, (high - low) / 10)
    for value, anchor, x in ((low, "start", left), (high, "end", width - left)):
        out.append(f'<text x="{x}" y="{height - 4}" text-anchor="{anchor}" font-size="10" fill="var(--muted)">{value:.{digits}f}</text>')
    return Markup("".join([*out, "</svg>"]))


def matrix(names: Sequence[str], values: np.ndarray, *, low: float, high: float, title: str) -> Markup:
    """A square of numbers, blue towards `high` and orange towards `low`; empty below two metrics."""
    if len(names) < 2:
        return Markup("")
    cell, left, top = 34, 150, 128
    width, height = left + cell * len(names) + 70, top + cell * len(names) + 6
    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{_escape(title)}">']
    for i, name in enumerate(names):
        x, y = left + cell * i + cell / 2, top + cell * i + cell / 2
        out.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end" font-size="11" fill="var(--ink)">{_escape(name)}</text>')
        turn = f'transform="rotate(-45 {x} {top - 8})"'
        out.append(f'<text x="{x}" y="{top - 8}" font-size="11" fill="var(--ink)" {turn}>{_escape(name)}</text>')
        for j in range(len(names)):
            value = values[i, j]
            x = left + cell * j
            if not math.isfinite(value):
                out.append(f'<rect x="{x}" y="{y - cell / 2}" width="{cell - 1}" height="{cell - 1}" fill="var(--tint)"/>')
                continue
            share = (value - (low + high) / 2) / ((high - low) / 2)
            paint = "#0b7a75" if share > 0 else "#c2571a"
            box = f'x="{x}" y="{y - cell / 2}" width="{cell - 1}" height="{cell - 1}"'
            out.append(f'<rect {box} fill="{paint}" fill-opacity="{min(1.0, abs(share)) * 0.75:.2f}"/>')
            out.append(
                f'<text x="{x + cell / 2 - 0.5}" y="{y + 4}" text-anchor="middle" font-size="10" fill="var(--ink)">{value:.2f}</text>'
            )
    return Markup("".join([*out, "</svg>"]))
