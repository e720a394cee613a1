"""The command `make-preferences lint`: everything wrong with a set of pairs or photos, as a table and as JSON."""

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from portraitkit.errors import DataError
from portraitkit.files.atomic import write_text
from portraitkit.files.jsonl import read_json_lines
from portraitkit.runs.progress import counting
from preference_data.commands.lint_checks import (
    KINDS,
    Entry,
    Finding,
    check_anchors,
    check_duplicates,
    check_people,
    check_sizes,
    check_verdicts,
    files_listed,
    look,
)
from preference_data.commands.options import LintConfig
from preference_data.pair_set import METADATA, metadata_of, read_photo_row, scan_pairs

SHOWN = 3


def lint_data(config: LintConfig) -> int:
    """Check and print; returns 0 without findings, 1 with some.

    Raises:
        DataError: no `metadata.jsonl`, or nothing in it.
    """
    console = Console(stderr=True)
    entries, findings = read_entries(config.data)
    if not entries and not findings:
        raise DataError(f"{config.data / METADATA}: holds no row")
    with counting(console, "looking", files_listed(entries)) as advance:
        pictures, unusable = look(config.data, entries, identity=config.identity, advance=advance)
    findings += unusable + check_sizes(entries, pictures)
    findings += check_duplicates(entries, pictures, max_bits=config.max_bits, min_correlation=config.min_correlation)
    findings += check_people(entries, pictures, max_distance=config.max_distance)
    findings += check_anchors(entries, pictures, need=config.need_anchors, max_distance=config.max_distance)
    findings += check_verdicts(entries)
    findings.sort(key=lambda finding: (list(KINDS).index(finding.kind), finding.lines))
    report = {"rows": len(entries), "findings": [vars(finding) for finding in findings], "counts": Counter(f.kind for f in findings)}
    if config.json is not None and str(config.json) == "-":
        print(json.dumps(report))
        return 1 if findings else 0
    if config.json is not None:
        _write(config.json, report)
    _show(findings, len(entries), config.data)
    return 1 if findings else 0


def read_entries(folder: Path) -> tuple[list[Entry], list[Finding]]:
    """The rows of a pair set or of a photo folder, and the findings "bad_row".

    Raises:
        DataError: no such file.
    """
    path = metadata_of(folder, f"give a folder of pairs or photos with {METADATA}")
    if _holds_pairs(path):
        row_set = scan_pairs(folder)
        entries = [
            Entry(line, pair.input, pair.anchor, (pair.a, pair.b), pair.split, pair.identity, pair)
            for pair, line in zip(row_set.rows, row_set.lines, strict=True)
        ]
    else:
        row_set = read_json_lines(path, partial(read_photo_row, root=folder.resolve()))
        entries = [
            Entry(line, row["file_name"], row.get("anchor_file_name"), (), row.get("split") or "", row.get("identity") or "")
            for row, line in zip(row_set.rows, row_set.lines, strict=True)
        ]
    return entries, [Finding("bad_row", (bad.line,), bad.reason) for bad in row_set.rejected]


def _holds_pairs(path: Path) -> bool:
    """Whether any row names an `input_file_name`; photo folders name a `file_name`."""
    kinds = read_json_lines(path, lambda row: "input_file_name" in row or "file_name" not in row).rows
    return any(kinds)


def _show(findings: list[Finding], rows: int, data: Path) -> None:
    console = Console()
    if not findings:
        console.print(f"{data}: {rows} rows, nothing found", highlight=False, markup=False)
        return
    table = Table(title=escape(f"{data}: {rows} good rows, {len(findings)} findings"), title_justify="left")
    table.add_column("finding")
    table.add_column("count", justify="right")
    table.add_column("lines and words")
    for kind, count in Counter(finding.kind for finding in findings).items():
        shown = [finding for finding in findings if finding.kind == kind][:SHOWN]
        words = [f"{', '.join(map(str, finding.lines[:6]))}: {finding.message}" for finding in shown]
        words += [f"and {count - SHOWN} more (--json FILE lists all)"] if count > SHOWN else []
        table.add_row(f"{kind}\n[dim]{KINDS[kind]}[/dim]", str(count), escape("\n".join(words)))
    console.print(table)


def _write(path: Path, report: dict[str, Any]) -> None:
    try:
        write_text(path, json.dumps(report, indent=2) + "\n")
    except OSError as error:
        raise DataError(f"--json {path}: could not be written ({error.strerror}); give another file") from error
