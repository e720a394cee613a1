"""The ablation's picture and table. Drawn by matplotlib's own figures, never through pyplot, so that no display is needed."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

Row = dict[str, object]

PANELS = (
    ("reward_gain", "Held-out reward gain\nanchor-free ODE, higher is better"),
    ("residual_grain", "Residual grain after\n% of full scale, lower is better"),
    ("rollout_reward", "Rollout reward\nnot a result: anchors leak into it"),
)
COLUMNS = (
    ("reward_gain", "reward gain", "+.3f"),
    ("validation_gain", "validation gain", "+.3f"),
    ("gain_per_1000_evaluations", "gain per 1,000 evaluations", "+.4f"),
    ("gain_per_minute", "gain per minute", "+.4f"),
    ("identity_distance_gain", "identity distance change", "+.3f"),
    ("blemish_residual", "blemish residual", ".3f"),
    ("texture_error", "texture error", ".3f"),
    ("tone_error", "tone error", ".2f"),
    ("residual_grain", "residual grain", ".3f"),
    ("diversity_first", "diversity, first steps", ".4f"),
    ("diversity", "diversity, last steps", ".4f"),
    ("rollout_reward", "rollout reward", ".3f"),
    ("network_evaluations", "network evaluations", ",.0f"),
    ("seconds", "seconds", ".0f"),
)


def ablation_plot(rows: Sequence[Row], path: Path) -> None:
    """Draw the ablation: one line an arm (in the order given), one dot a seed, a bar at the mean.

    Args:
        rows: one run each, with `arm`, `seed`, the fields of `PANELS`, and `ci_low` and `ci_high` of the reward gain.
        path: the PNG to write.
    """
    arms = _by_arm(rows)
    places = range(len(arms) - 1, -1, -1)
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 9}):
        figure = Figure(figsize=(9.6, 1.25 + 0.46 * len(arms)), layout=ConstrainedLayoutEngine(w_pad=0.12))
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(PANELS), sharey=True, width_ratios=(1.9, 1, 1))
        for axes, (key, title) in zip(panels, PANELS, strict=True):
            name, _, remark = title.partition("\n")
            axes.set_title(name, loc="left", fontsize=10, color="#1b1f24", pad=18)
            axes.annotate(remark, (0, 1), (0, 5), "axes fraction", "offset points", fontsize=8, color="#68707a")
            colour = "#9aa1aa" if key == "rollout_reward" else "#0b7a75"
            if key == "reward_gain":
                axes.axvline(0, color="#68707a", linewidth=0.8, zorder=1)
            for place, runs in zip(places, arms.values(), strict=True):
                _draw_arm(axes, place, runs, key, colour)
            axes.grid(axis="x", color="#e6e8eb", linewidth=0.7)
            axes.set_axisbelow(True)
            axes.margins(x=0.08)
            axes.xaxis.set_major_locator(MaxNLocator(5 if key == "reward_gain" else 3))
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0, labelcolor="#68707a")
        panels[0].set_yticks(list(places), labels=list(arms), color="#1b1f24", fontsize=9.5, parse_math=False)
        panels[0].set_ylim(-0.6, len(arms) - 0.4)
        figure.supxlabel("dot: a seed, with its 95 % interval over people; bar: mean of the arm", fontsize=8, color="#68707a")
        figure.savefig(path, format="png", dpi=160, facecolor="white")


def _draw_arm(axes: Axes, place: int, runs: Sequence[Row], key: str, colour: str) -> None:
    values = [_number(run.get(key)) for run in runs]
    offsets = [0.0] if len(runs) == 1 else [0.17 - 0.34 * i / (len(runs) - 1) for i in range(len(runs))]
    if key == "reward_gain":
        for run, offset in zip(runs, offsets, strict=True):
            ends = _number(run.get("ci_low")), _number(run.get("ci_high"))
            axes.plot(ends, (place + offset, place + offset), color=colour, alpha=0.3, linewidth=1.4, zorder=1.2)
    axes.plot(values, [place + offset for offset in offsets], "o", color=colour, markersize=5, markeredgecolor="white", markeredgewidth=0.5)
    known = [value for value in values if math.isfinite(value)]
    if known:
        axes.vlines(fmean(known), place - 0.3, place + 0.3, color="#1b1f24", linewidth=1.6, zorder=1.5)


def ablation_table_markdown(rows: Sequence[Row]) -> str:
    """The ablation as a Markdown table: each arm's mean over its seeds, and the range `min … max` where they differ; of an arm with one
    seed the reward gain's 95 % interval over people, `[low, high]`."""
    head = ["arm", "seeds", *(title for _, title, _ in COLUMNS)]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for arm, runs in _by_arm(rows).items():
        cells = [arm.replace("|", "\\|").replace("\n", " "), str(len(runs))]
        cells += [_mean_and_range([_number(run.get(key)) for run in runs], form) for key, _, form in COLUMNS]
        if len(runs) == 1:
            cells[2] += " [{:+.3f}, {:+.3f}]".format(*(_number(runs[0].get(end)) for end in ("ci_low", "ci_high"))).replace("-", "−")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mean_and_range(values: Sequence[float], form: str) -> str:
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return "–"
    mean, low, high = (format(value, form).replace("-", "−") for value in (fmean(known), min(known), max(known)))
    return mean if low == high else f"{mean} ({low} … {high})"


def _by_arm(rows: Sequence[Row]) -> dict[str, list[Row]]:
    arms: dict[str, list[Row]] = {}
    for row in rows:
        arms.setdefault(str(row["arm"]), []).append(row)
    return arms


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
