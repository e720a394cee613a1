"""`report.html` of a benchmark: one file without outside requests, everything escaped."""

import math
from pathlib import Path
from typing import Any

from markupsafe import Markup

from benchmarks import published
from benchmarks.cases import extremes, show_cases
from benchmarks.metric import Metric
from benchmarks.stats import Comparison
from benchmarks.tables import Analysis, best_methods, decimals, figure, gained
from portraitkit.report.charts import colour, distribution, matrix, radar
from portraitkit.report.page import write_page
from portraitkit.report.pictures import AMPLIFY
from portraitkit.stats import ALPHA


def write_report(folder: Path, analysis: Analysis) -> Path:
    """Write the report into the run's folder; returns its path."""
    template = Path(__file__).parent / "templates" / "benchmark.html.j2"
    return write_page(folder / "report.html", template, _context(analysis), p=_p, percent=_percent, colour=colour, gain=_gain)


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
        "metrics": [_row(analysis, metric) for metric in results.metrics],
        "comparisons": [_compared(analysis, entry) for entry in analysis.comparisons],
        "radar": radar(_axes(analysis)),
        "plots": [(metric, _distribution(analysis, metric)) for metric in results.metrics if metric.name in table.values],
        "groups": _groups(analysis),
        "extremes": chosen,
        "signs": {metric.name: metric.arrow for metric in results.metrics},
        "cases": show_cases(analysis, chosen),
        "amplify": AMPLIFY,
        "spearman": matrix(analysis.names, analysis.spearman, low=-1, high=1, title="Spearman's correlation"),
        "agreement": matrix(analysis.names, analysis.agreement, low=0, high=1, title="Share of equal verdicts") if len(names) > 1 else "",
        "accuracy": analysis.accuracy,
        "published": published.BEAUTYGRPO,
        "note": published.NOTE,
        "skipped": results.skipped,
        "failed": results.failed[:20],
        "failures": len(results.failed),
        "left_out": results.inputs.notes,
        "weights": [(metric, results.weights[metric.name]) for metric in results.metrics],
    }


def _axes(analysis: Analysis) -> list[tuple[str, list[float]]]:
    """The radar's axes: the metrics on which the methods differ, each turned so that higher is better."""
    axes = []
    for metric in analysis.results.metrics:
        means = [entry.mean if (entry := analysis.mean(metric.name, method)) else math.nan for method in analysis.table.methods]
        if all(map(math.isfinite, means)) and max(means) > min(means):
            label = metric.name.removeprefix("reward_") + (" (reward)" if metric.name.startswith("reward_") else "")
            axes.append((label, [metric.sign * mean for mean in means]))
    return axes


def _distribution(analysis: Analysis, metric: Metric) -> Markup:
    entries = [analysis.mean(metric.name, method) for method in analysis.table.methods]
    means = [(entry.mean, *entry.ci95) if entry and all(map(math.isfinite, entry.ci95)) else None for entry in entries]
    values = analysis.table.values[metric.name].numpy()
    return distribution(f"Distribution of {metric.name}", analysis.table.methods, values, means, decimals)


def _row(analysis: Analysis, metric: Metric) -> dict[str, Any]:
    best = best_methods(analysis, metric)
    cells = []
    for method in analysis.table.methods:
        entry = analysis.mean(metric.name, method)
        mean, half = figure(entry.mean, entry.ci95) if entry is not None else ("", "")
        value = entry.mean if entry is not None and math.isfinite(entry.mean) else ""
        missing = entry.missing if entry is not None else 0
        cells.append({"mean": mean or "none", "half": half, "best": method in best, "value": value, "missing": missing})
    return {"metric": metric, "cells": cells}


def _compared(analysis: Analysis, entry: Comparison) -> dict[str, Any]:
    verdict = ("better" if entry.better else "worse") if entry.p_holm < ALPHA else "undecided"
    arrow = next(metric.arrow for metric in analysis.results.metrics if metric.name == entry.metric)
    gain, bounds = gained(entry)
    return {"entry": entry, "gain": gain, "bounds": bounds, "verdict": verdict, "arrow": arrow}


def _groups(analysis: Analysis) -> list[dict[str, Any]]:
    """One table a kind of group: rows are metric and value, columns the methods."""
    out: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
    for row in analysis.groups:
        cells = out.setdefault(row["group"], {}).setdefault((row["metric"], row["value"]), {})
        mean, half = figure(row["mean"], row["ci95"])
        cells[row["method"]] = {"mean": mean, "half": half, "worst": row["worst"], "n": row["n"]}
    return [{"group": group, "rows": rows} for group, rows in out.items()]


def _gain(value: float) -> str:
    return f"{value:+.{decimals(value, value)}f}"


def _p(value: float) -> str:
    if not math.isfinite(value):
        return ""
    return "< .001" if value < 0.001 else f"{value:.3f}".replace("0.", ".", 1)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
