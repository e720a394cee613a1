"""Results as files: JSON, CSV, Markdown and LaTeX, each written in one piece."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from rich.table import Column, Table

from benchmarks.metric import Metric
from benchmarks.stats import (
    LEAST_EFFECT,
    ROUNDING,
    Comparison,
    Grid,
    Mean,
    Preference,
    comparisons,
    correlations,
    grid,
    group_tables,
    means,
    pair_accuracy,
    too_few,
)
from benchmarks.suite import Results
from portraitkit.files.atomic import replacing, write_csv, write_text, writing
from portraitkit.files.jsonl import finite, write_lines
from portraitkit.report.page import markdown_text, page_environment

PUBLISHED: dict[str, Any] = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
"""A published table with its source; never compared number by number with ours."""


@dataclass(frozen=True)
class Analysis:
    """Everything that is written about a run."""

    results: Results  # the run's values
    table: Grid  # by photo and method
    means: list[Mean]  # of every metric and method
    comparisons: list[Comparison]  # of every two methods
    groups: list[dict[str, Any]]  # by group of people
    names: list[str]  # metrics of the two matrices
    spearman: np.ndarray  # their correlation
    agreement: np.ndarray  # share of equal verdicts
    accuracy: list[dict[str, Any]]  # on preference pairs

    @classmethod
    def of(cls, results: Results, seed: int, pairs: Sequence[Preference] = ()) -> Self:
        """Analyse a run; `pairs` where there are preferences."""
        table = grid(results)
        names, spearman, agreement = correlations(results, table)
        return cls(
            results,
            table,
            means(results, table, seed),
            comparisons(results, table, seed),
            group_tables(results, table, seed),
            names,
            spearman,
            agreement,
            pair_accuracy(results.metrics, table, pairs) if pairs else [],
        )

    def mean(self, metric: str, method: str) -> Mean | None:
        """Of one metric and method."""
        return next((entry for entry in self.means if (entry.metric, entry.method) == (metric, method)), None)

    def too_few(self) -> str:
        """One line where there are too few photos for any difference to be found; else empty."""
        return too_few(max((entry.n for entry in self.comparisons), default=0), len(self.comparisons))

    def sides(self) -> list[dict[str, Any]]:
        """For every two methods the metrics on which the second is `better`, `worse` or neither (`unsure`), after correction."""
        out = []
        for before, after in dict.fromkeys((entry.before, entry.after) for entry in self.comparisons):
            entries = [entry for entry in self.comparisons if (entry.before, entry.after) == (before, after)]
            kinds = {"better": "better", "worse": "worse", "unsure": "undecided"}
            names = {kind: [entry.metric for entry in entries if entry.verdict == verdict] for kind, verdict in kinds.items()}
            out.append({"before": before, "after": after, **names})
        return out

    def verdicts(self) -> list[str]:
        """One line for every two methods; before them, where that is so, the line that there are too few photos."""
        return [self.too_few()] * bool(self.too_few()) + [
            f"{pair['after']} against {pair['before']}: {len(pair['better'])} better, {len(pair['worse'])} worse, "
            f"{len(pair['unsure'])} undecided (Holm, 5 %, at least {LEAST_EFFECT:g} standard deviations)"
            for pair in self.sides()
        ]


def rows(analysis: Analysis) -> Iterator[dict[str, Any]]:
    """One a picture and metric, in the tables' order; None where there is no value."""
    results = analysis.results
    for metric in results.metrics:
        values = results.values.get(metric.name)
        if values is not None:
            for item, value in zip(results.inputs.items, values.tolist(), strict=True):
                yield {"image": item.name, "method": item.method, "metric": metric.name, "value": value if math.isfinite(value) else None}


def write_tables(folder: Path, analysis: Analysis) -> None:
    """Write results.json, rows.csv, summary.csv, summary.md, summary.tex and failed.jsonl."""
    write_csv(folder / "rows.csv", ("image", "method", "metric", "value"), rows(analysis))
    flat = ({**asdict(entry), "ci95_low": entry.ci95[0], "ci95_high": entry.ci95[1]} for entry in analysis.means)
    write_csv(folder / "summary.csv", ("method", "metric", "mean", "ci95_low", "ci95_high", "n", "missing"), flat)
    failed = [{"file": file, "metric": metric, "reason": reason} for file, metric, reason in analysis.results.failed]
    (folder / "failed.jsonl").unlink(missing_ok=True)
    if analysis.results.failed:
        write_lines(folder / "failed.jsonl", failed)
    with writing(folder):
        _write_json(folder / "results.json", analysis, failed)
        for kind in ("md", "tex"):
            write_text(folder / f"summary.{kind}", summary(analysis, kind))


def _write_json(path: Path, analysis: Analysis, failed: list[dict[str, str]]) -> None:
    results = analysis.results

    def parts() -> Iterator[str]:
        yield '{\n"rows": [\n'
        before = ""
        for row in rows(analysis):
            yield before + json.dumps(row)
            before = ",\n"
        rest = {
            "summary": [asdict(entry) for entry in analysis.means],
            "too_few": analysis.too_few(),
            "skipped": [{"metric": name, "reason": reason} for name, reason in results.skipped.items()],
            "comparisons": [asdict(entry) for entry in analysis.comparisons],
            "groups": analysis.groups,
            "correlation": {"metrics": analysis.names, "spearman": analysis.spearman.tolist(), "agreement": analysis.agreement.tolist()},
            "pairs": analysis.accuracy,
            "metrics": [_about(metric, results) for metric in results.metrics],
            "failed": failed,
            "published": PUBLISHED,
        }
        yield "\n]"
        for key, value in rest.items():
            yield f",\n{json.dumps(key)}: {json.dumps(finite(value), indent=1)}"
        yield "\n}\n"

    with replacing(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        file.writelines(parts())


def _about(metric: Metric, results: Results) -> dict[str, Any]:
    found = results.weights[metric.name]
    return {
        "name": metric.name,
        "direction": metric.direction,
        "range": [metric.range.low, metric.range.high],
        "reference": metric.reference,
        "licence": metric.licence,
        "revision": metric.revision,
        "version": metric.version,
        "sha256": dict(found.sha256),
        "notes": list(found.notes),
    }


def decimals(value: float, *small: float) -> int:
    """Decimals under which a value is written: 2, or 3 below 2, and as many more as show a digit of everything small beside it."""
    shown = [abs(number) for number in small if math.isfinite(number) and number != 0]
    return max([3 if abs(value) < 2 else 2, *(min(9, -math.floor(math.log10(number))) for number in shown)])


def figure(mean: float, ci95: Sequence[float]) -> tuple[str, str]:
    """A mean and half its interval, as text, empty where there is none."""
    if not math.isfinite(mean):
        return "", ""
    half = (ci95[1] - ci95[0]) / 2
    digits = decimals(mean, half if half >= ROUNDING else 0)
    return f"{mean:.{digits}f}", f"{half:.{digits}f}" if math.isfinite(half) else ""


def gained(entry: Comparison) -> tuple[str, str]:
    """A gain and its interval, as text; an interval that leaves 0 out is seen to."""
    low, high = entry.ci95
    sure = low > 0 or high < 0
    digits = decimals(entry.gain, (high - low) / 2, *((low, high, entry.gain) if sure else ()))
    return f"{entry.gain:+.{digits}f}", f"{low:+.{digits}f} .. {high:+.{digits}f}" if math.isfinite(low) else ""


def best_methods(analysis: Analysis, metric: Metric) -> set[str]:
    """The methods with the best mean, where two or more have one and all of these are means over the same photos."""
    known = [entry for entry in analysis.means if entry.metric == metric.name and math.isfinite(entry.mean)]
    if len(known) < 2 or len({_photos(analysis, metric, entry.method) for entry in known}) > 1:
        return set()
    top = max(metric.sign * entry.mean for entry in known)
    return {entry.method for entry in known if metric.sign * entry.mean == top}


def _photos(analysis: Analysis, metric: Metric, method: str) -> frozenset[str]:
    """The photos of which a method's mean is."""
    table = analysis.table
    if metric.name not in table.values:
        return frozenset(item.name for item in analysis.results.inputs.items if item.method == method)
    known = table.values[metric.name][:, table.methods.index(method)].isfinite().tolist()
    return frozenset(name for name, one in zip(table.names, known, strict=True) if one)


def cells(analysis: Analysis, metric: Metric) -> list[dict[str, Any]]:
    """A metric's row: of each method mean and half its interval as text, whether it is the best, its value and how many have none."""
    best, row = best_methods(analysis, metric), []
    for method in analysis.table.methods:
        entry = analysis.mean(metric.name, method)
        mean, half = figure(entry.mean, entry.ci95) if entry is not None else ("", "")
        value, missing = (entry.mean, entry.missing) if entry is not None else (math.nan, 0)
        row.append({"mean": mean, "half": half, "best": method in best, "value": value if mean else "", "missing": missing})
    return row


def means_table(analysis: Analysis) -> Table:
    """Of each metric and method the mean with half its 95 % interval, for a terminal."""
    table = Table("mean", *(Column(method, justify="right") for method in analysis.table.methods), box=None, pad_edge=False)
    for metric in analysis.results.metrics:
        texts = (cell["mean"] + (f" ± {cell['half']}" if cell["half"] else "") for cell in cells(analysis, metric))
        table.add_row(f"{metric.name} {metric.arrow}", *texts)
    return table


def summary(analysis: Analysis, kind: Literal["md", "tex"]) -> str:
    """Means with half the 95 % interval, best in bold: in Markdown, with what was skipped below, or as a booktabs table for LaTeX."""
    environment = page_environment(Path(__file__).parent / "templates", autoescape=False)
    environment.filters |= {"cell": markdown_text, "tex": _tex}
    results, template = analysis.results, environment.get_template(f"summary.{kind}.j2")
    shown = {"methods": analysis.table.methods, "metrics": results.metrics, "cells": partial(cells, analysis)}
    return template.render(shown, verdicts=analysis.verdicts(), skipped=results.skipped).rstrip() + "\n"


def _tex(text: str) -> str:
    """Text that LaTeX shows as it is, in its old font encoding, too."""
    named = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "|": "bar", "<": "less", ">": "greater"}
    special = {char: f"\\{char}" for char in "&%$#_{}"} | {char: rf"\text{name}{{}}" for char, name in named.items()}
    return "".join(special.get(char, char) for char in text)
