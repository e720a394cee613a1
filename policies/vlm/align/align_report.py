"""`report.html` of an `align-vlm` run: one file, made from the run folder alone."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from policies.vlm.tasks.shape_area import PUBLISHED_CURVES
from portraitkit.files.atomic import write_text
from portraitkit.report.curves import Reference, Series, curve_svg
from portraitkit.report.page import inline_picture, number, page_environment, signed

SHOWN = 4
SMOOTH = 5


def write_report(folder: Path) -> Path:
    """Write `report.html` into the folder of a finished run: no outside requests, everything escaped.

    Args:
        folder: with config.json, environment.json, probe.json, floors.json, summary.json, metrics.jsonl and answers.jsonl.

    Returns:
        The path of the report.
    """
    environment = page_environment(Path(__file__).parents[1] / "templates")
    page = environment.get_template("align.html.j2").render(_context(folder))
    path = folder / "report.html"
    write_text(path, page)
    return path


def write_probe_report(folder: Path) -> Path:
    """Write `report.html` into the folder of a probe that no training followed.

    Args:
        folder: with config.json, environment.json and probe.json.

    Returns:
        The path of the report.
    """
    environment = page_environment(Path(__file__).parents[1] / "templates")
    config, probe = _read(folder / "config.json"), _read(folder / "probe.json")
    context = {"title": f"align-vlm {probe['task']}: probe", "probe": _probe_lines(probe), **_setup(config, folder)}
    path = folder / "report.html"
    write_text(path, environment.get_template("probe.html.j2").render(context))
    return path


def _setup(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """How a run was made: what setup.html.j2 shows."""
    environment = _read(folder / "environment.json")
    return {"command": shlex.join(environment["command"]), "settings": sorted(config.items()), "versions": environment["versions"]}


def _context(folder: Path) -> dict[str, Any]:
    config, summary = _read(folder / "config.json"), _read(folder / "summary.json")
    floors = _read(folder / "floors.json")
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    held_out = summary["held_out"]
    return {
        "title": f"align-vlm {summary['task']}",
        "headline": headline(summary),
        "summary": summary,
        "held_out": held_out,
        "facts": [
            ("held-out rows", str(held_out["n"])),
            ("rewards", summary["mode"]),
            ("minutes", f"{summary['seconds'] / 60:.1f}"),
            ("seed", str(summary["seed"])),
            ("model", str(config["model"])),
            *([("processes", str(summary["processes"]))] if summary.get("processes", 1) > 1 else []),
        ],
        "plots": _plots(metrics, floors, _published(summary)),
        "probe": _probe_lines(_read(folder / "probe.json")),
        "metric_rows": [(name, value, summary["metrics"]["after"].get(name)) for name, value in summary["metrics"]["before"].items()],
        "examples": _examples(folder),
        **_setup(config, folder),
    }


def headline(summary: dict[str, Any]) -> str:
    """What happened, in one sentence that the intervals allow."""
    held_out = summary["held_out"]
    greedy, sampled = held_out["greedy"], held_out["sampled"]
    words = [
        f"{name} {_verdict(row['gain_ci95'])} ({signed(row['gain'])})" for name, row in (("Sampled reward", sampled), ("greedy", greedy))
    ]
    low = greedy["ci95_after"][0]
    looks = "It looks: " if low > max(held_out["constant_floor"], held_out["shuffled_image_after"]) else "It is not shown to look: "
    return (
        f"{words[0]}, {words[1]}. {looks}greedy {number(greedy['after'])} against {number(held_out['constant_floor'])} for the best "
        f"constant answer and {number(held_out['shuffled_image_after'])} with shuffled pictures."
    )


def _verdict(interval: Sequence[float]) -> str:
    return "rose" if interval[0] > 0 else "fell" if interval[1] < 0 else "did not change beyond chance"


def _published(summary: dict[str, Any]) -> list[Reference]:
    """Where the published run of the same task began and ended; none for other tasks, or for rewards that it did not use."""
    curve = PUBLISHED_CURVES.get(summary["task"]) if summary["mode"] == "paper" and not summary.get("reward_file") else None
    if curve is None:
        return []
    return [Reference(value, f"published, real model: {when} {value:g}") for when, value in zip(("start", "end"), curve, strict=True)]


def _plots(metrics: list[dict[str, Any]], floors: dict[str, float], published: Sequence[Reference]) -> list[tuple[str, str, str]]:
    """(title, how to read it, SVG)."""
    steps = [row for row in metrics if row.get("kind") == "grpo"]
    validation = [row for row in metrics if row.get("kind") == "validation"]
    plots = []
    rewards = [(row["step"], row["reward"]) for row in steps if row.get("reward") is not None]
    if rewards:
        x, y = zip(*rewards, strict=True)
        smooth = [sum(y[max(i - SMOOTH + 1, 0) : i + 1]) / len(y[max(i - SMOOTH + 1, 0) : i + 1]) for i in range(len(y))]
        lines = [Series(x, y, kind="line", colour="muted"), Series(x, smooth, kind="line")]
        svg = curve_svg(lines, floors=[floors["constant"], floors["shuffled_image"]], references=published)
        reads = f"grey: each step; colour: mean of {SMOOTH}; dashed: best constant answer; dash-dot: shuffled pictures, before training"
        reads += "; dotted: start and end of the published run (Qwen2.5-VL-7B, 950 prompts)" if published else ""
        plots.append(("Sampled reward in training", reads, svg))
    if validation:
        series = Series([row["step"] for row in validation], [row["greedy"] for row in validation])
        svg = curve_svg([series], floors=[floors["validation_constant"], floors["shuffled_image"]])
        reads = "dashed: best constant answer there; dash-dot: shuffled pictures, held-out rows, before training"
        plots.append(("Greedy reward on validation rows", reads, svg))
    for name, title, reads in (
        ("reward_std", "Spread inside a group", "0: nothing to learn from"),
        ("completions/mean_length", "Answer length", "tokens"),
        ("entropy", "Entropy", "of the tokens; a collapse ends exploration"),
        ("grad_norm", "Gradient norm", "before clipping"),
    ):
        points = [(row["step"], row[name]) for row in steps if isinstance(row.get(name), int | float)]
        if points:
            x, y = zip(*points, strict=True)
            plots.append((title, reads, curve_svg([Series(x, y, kind="line")])))
    return plots


def _probe_lines(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    from portraitkit.vlm.probe import Inversion, Probe

    example = found.pop("inversion_example")
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}  # JSON knows no tuples
    return Probe(**found, inversion_example=Inversion(**example) if example else None).lines()


def _examples(folder: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """(heading, answers) of the most improved, typical and worst held-out rows, pictures included."""
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    by_gain = sorted(rows, key=lambda row: row["after"]["reward"] - row["before"]["reward"])
    by_reward = sorted(rows, key=lambda row: row["after"]["reward"])
    middle = max(len(rows) // 2 - SHOWN // 2, 0)
    groups = (("Most improved", by_gain[::-1][:SHOWN]), ("Typical", by_reward[middle : middle + SHOWN]), ("Worst", by_reward[:SHOWN]))
    return [
        (name, [{**row, "pictures": [inline_picture(folder / file) for file in row["images"]]} for row in some]) for name, some in groups
    ]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
