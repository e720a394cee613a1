"""`report.html` of an `align-retoucher` run: one file that shows what came out, made from the run folder alone."""

import base64
import dataclasses
import hashlib
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from policies.retoucher.config import RetoucherConfig
from policies.retoucher.report import words
from policies.retoucher.report.curves import judge_plots, rollout_plot, training_plots, validation_plots
from policies.retoucher.report.pictures import AMPLIFY, Figure, featured, full_figure, plain_figure, ranked
from policies.retoucher.report.run_files import Json, Run, number, read_measures, read_run
from portraitkit.files.atomic import write_text
from portraitkit.report.page import page_environment


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder: one file, no outside requests, everything escaped.

    Args:
        folder: of a finished run: config.json, environment.json, summary.json, metrics.jsonl, and held_out/ where there
            are pictures.

    Returns:
        The path of the report.

    Raises:
        RunFolderError: a file is missing or is not valid JSON.
        ImageError: a picture cannot be read.
    """
    run = read_run(folder)
    environment = page_environment(Path(__file__).parent / "templates")
    environment.filters |= {"number": words.number, "signed": words.signed, "csp_hash": _csp_hash}
    page = environment.get_template("report.html.j2").render(_context(run))
    path = folder / "report.html"
    write_text(path, page)
    return path


def _context(run: Run) -> dict[str, object]:
    measures = read_measures(run)
    figures = [figure for label, photo in featured(run.photos) if (figure := full_figure(run.folder / "held_out", photo, label))]
    shown = {figure.photo.row for figure in figures}
    ranks = {photo.row: rank for rank, photo in enumerate(ranked(run.photos), start=1)}
    rest = [
        figure
        for photo in run.photos
        if photo.row not in shown
        and (figure := plain_figure(run.folder / "held_out", photo, f"rank {ranks[photo.row]} of {len(run.photos)}"))
    ]
    command = run.environment.get("command") or []
    return {
        "title": f"Alignment report: {run.folder.resolve().name}",
        "headline": words.headline(measures.get("reward")),
        "verdict": measures["reward"].verdict if "reward" in measures else "",
        "findings": words.findings(measures),
        "caveats": words.caveats(run.config, run.summary),
        "warnings": words.warnings(measures),
        "facts": _facts(run),
        "measures": list(measures.values()),
        "figures": figures,
        "hero": _hero(figures),
        "rest": rest,
        "photo_measures": [name for name in ("blemish_residual", "texture_error", "identity_distance") if name in measures],
        "meanings": words.MEANINGS,
        "amplify": AMPLIFY,
        "validation_plots": validation_plots(run, list(measures)),
        "judge_plots": judge_plots(run),
        "rollout_plot": rollout_plot(run),
        "training_plots": training_plots(run),
        "best_step": run.summary.get("best_step"),
        "alarms": run.summary.get("alarms") or [],
        "settings": _settings(run.config),
        "command": shlex.join(str(part) for part in command),
        "environment": _flatten({key: value for key, value in run.environment.items() if key != "command"}),
        "files": _files(run.folder),
    }


def _hero(figures: Sequence[Figure]) -> Figure | None:
    """The photo of the large comparison: a typical one, not the best."""
    median = [figure for figure in figures if figure.label.startswith("median")]
    return median[len(median) // 2] if median else (figures[0] if figures else None)


def _facts(run: Run) -> list[tuple[str, str]]:
    summary = run.summary
    photos = summary.get("photos") or {}
    seeds = ", ".join(str(seed) for seed in summary.get("seeds") or [])
    total = number(summary.get("seconds_total"))
    seconds = words.duration(number(summary.get("seconds")))
    facts = [
        ("held-out photos", photos.get("held_out", len(run.photos))),
        ("training steps", summary.get("train_steps")),
        ("training time", f"{seconds} ({words.duration(total)} in all)" if math.isfinite(total) else seconds),
        (
            "network evaluations",
            f"{summary['network_evaluations']:,}" if isinstance(summary.get("network_evaluations"), int) else None,
        ),
        ("seed", seeds or None),
        ("hardware", summary.get("hardware")),
    ]
    return [(name, str(value)) for name, value in facts if value is not None]


# ---- tables of what was run


def _settings(config: Json) -> list[tuple[str, str, str]]:
    """(option, value, default where it differs) of every setting."""
    defaults = {field.name: field.default for field in dataclasses.fields(RetoucherConfig)}
    out = []
    for name, value in config.items():
        default = defaults.get(name, value)
        default = list(default) if isinstance(default, tuple) else default
        out.append((name, _plain(value), "" if value == default else _plain(default)))
    return out


def _plain(value: object) -> str:
    if value is None or value == "" or value == []:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _flatten(value: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for key, entry in value.items():
        if isinstance(entry, dict):
            out += _flatten(entry, f"{prefix}{key}.")
        else:
            out.append((f"{prefix}{key}", _plain(entry)))
    return out


def _files(folder: Path) -> list[tuple[str, str]]:
    """(name, size) of what the run folder holds; a folder is one line."""
    out = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "report.html")):
            continue
        inside = [file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
        size = sum(file.stat().st_size for file in inside)
        count = f"{len(inside)} files, " if path.is_dir() else ""
        out.append((path.name + ("/" if path.is_dir() else ""), f"{count}{size / 1024:,.0f} KiB"))
    return out


def _csp_hash(script: str) -> str:
    """The source expression under which a content security policy lets exactly this script run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode("ascii")
