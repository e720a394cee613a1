"""The ablation: what do the parts of Dynamic Path Guidance do, and what do other losses reach at its cost?

The arms of `arms.toml`, equal network evaluations, several seeds; judged on held-out photos by the anchor-free ODE. Finished runs are kept
in `ablation.jsonl`, so that an interrupted ablation goes on where it stopped.
"""

import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from rich.console import Console

from policies.retoucher.backbones import load_backbone
from policies.retoucher.config import RetoucherConfig, idle_options
from policies.retoucher.evaluate import Evaluation, EvaluationSet, compare, evaluate_policy
from policies.retoucher.micro_batch import MicroBatch
from policies.retoucher.model.adapter import check_start
from policies.retoucher.model.encoding_cache import open_cache, with_cache
from policies.retoucher.model.loading import loading_options
from policies.retoucher.photos import PhotoSource, open_photos, read_photos
from policies.retoucher.run import open_rewards
from policies.retoucher.trainer import Trainer, make_evaluation_sets
from portraitkit.errors import ConfigError, nearest
from portraitkit.files.jsonl import read_objects
from portraitkit.parallel import launched_processes
from portraitkit.report.charts import as_float
from portraitkit.runs.folder import open_run
from portraitkit.runs.terminal import Interruptible
from reward_models.reward_set import RewardSet

ARMS: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("arms.toml").read_text(encoding="utf-8"))
"""What distinguishes each arm; everything else is the recipe's."""
CURVE = 4
"""How often a run is validated: after each of so many parts of its budget."""


def run_ablation(config: RetoucherConfig, command: list[str]) -> int:
    """Run every arm with every seed, then write ablation.md, ablation.png and curves.png into the run folder; returns the exit code."""
    console = Console(stderr=True)
    if config.report_to or config.resume_from_checkpoint is not None:
        raise ConfigError("--ablate takes no --report-to and no --resume-from-checkpoint: it goes on by itself, and writes ablation.jsonl")
    if launched_processes() > 1:
        raise ConfigError("--ablate: its runs are trained in one process each; start it without torchrun or accelerate launch")
    if unknown := next((name for name in config.ablate_arms if name not in ARMS), None):
        raise ConfigError(f"--ablate-arms {unknown}: no such arm{nearest(unknown, ARMS)}; known: {', '.join(ARMS)}")
    if not (budget := config.max_network_evaluations):  # the DPG arm's, about: prefix and first drawn step shared, K steps trained
        per_candidate = (1 - 1 / (2 * config.segments)) * config.num_steps + (3 + (config.kl_beta > 0)) * (config.segments - 1)
        budget = int(config.max_train_steps * config.photos_per_step * config.group_size * per_candidate)
    # Every run's settings are checked here, before the first is trained.
    runs = [
        (arm, arm_config(replace(config, seed=seed, max_network_evaluations=budget), arm))
        for seed in range(config.seed, config.seed + config.ablate_seeds)
        for arm in config.ablate_arms or ARMS
    ]
    if config.init_adapter is not None:
        check_start(config.init_adapter, config.rank, config.lora_alpha)
    with open_rewards(config, console) as rewards:
        photos = read_photos(config.photos, config.cache_dir, console)
        loaded = load_backbone(config.backbone, config.model, config.resolution, config.device, **loading_options(config))
        backbone = with_cache(loaded, config)
        source = open_photos(photos, backbone.resolution, config.anchors, config.device)
        resume = "latest" if (Path(config.output_dir) / "ablation.jsonl").is_file() and not config.overwrite else None
        with open_run(config, command, resume=resume, report_to=[]) as run, Interruptible() as interrupt:
            kept = run.path / "ablation.jsonl"
            kept.touch()
            rows = [row for _, row in read_objects(kept)]
            open_cache(backbone, config)
            steps, fitting = config.evaluation_steps, MicroBatch(config.micro_batch)
            sets = make_evaluation_sets(config, backbone, source)
            base = [evaluate_policy(backbone, data, rewards, steps, pictures=False, fitting=fitting) for data in sets]
            for arm, settings in runs:
                if any(row["arm"] == arm and row["seed"] == settings.seed for row in rows):
                    continue
                row = _run_arm(settings, source, rewards, list(zip(sets, base, strict=True)), interrupt)
                if row is None:
                    console.print("stopped; the same command goes on with the runs that are missing")
                    return interrupt.exit_code
                gain, seconds = row["reward_gain"], row["seconds"]
                console.print(f"{arm}, seed {settings.seed}: held-out reward {gain:+.3f} in {seconds:.0f} s", highlight=False)
                rows.append({"arm": arm, "settings": ARMS[arm], **row})
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                (run.path / "ablation.md").write_text(ablation_table_markdown(rows), encoding="utf-8")
            ablation_plot(rows, run.path / "ablation.png")
            curves_plot(rows, run.path / "curves.png")
            run.write_json("summary.json", {"rows": rows, "network_evaluations_per_run": budget})
            console.print(ablation_table_markdown(rows), highlight=False, soft_wrap=True)
    return 0


def arm_config(config: RetoucherConfig, arm: str) -> RetoucherConfig:
    """The settings of one arm: its own, and defaults for what its loss has no use for; ConfigError where they contradict each other."""
    own = {"ablate": False, "ablate_arms": ()} | ARMS[arm]
    idle = idle_options(own.get("loss", config.loss), own.get("dpg", config.dpg))
    return replace(config, **({name: getattr(RetoucherConfig, name) for name in idle} | own))


def _run_arm(
    config: RetoucherConfig, source: PhotoSource, rewards: RewardSet, sets: list[tuple[EvaluationSet, Evaluation]], interrupt: Interruptible
) -> dict[str, Any] | None:
    loaded = load_backbone(config.backbone, config.model, config.resolution, config.device, **loading_options(config))
    backbone = with_cache(loaded, config)
    open_cache(backbone, config)
    trainer = Trainer(config, backbone, source, rewards, Console(stderr=True))
    steps: list[dict[str, float]] = []
    curve: list[dict[str, float]] = []
    while not trainer.out_of_budget():
        result = trainer.train_step()
        steps.append({"rollout_reward": float(result.rewards.nanmean()), "diversity": result.diversity})
        if interrupt.requested:
            return None
        if trainer.out_of_budget() or trainer.progress.evaluations * CURVE >= config.max_network_evaluations * (len(curve) + 1):
            (data, base), seen = sets[0], trainer.progress
            reached = compare(base, trainer.evaluate(data, trainer.current(), pictures=False))["reward"].gain
            curve.append({"network_evaluations": seen.evaluations, "seconds": seen.seconds, "validation_gain": reached})
    data, base = sets[1]
    changes = compare(base, trainer.evaluate(data, trainer.current(), pictures=False))
    gain, evaluations, seconds = changes["reward"].gain, trainer.progress.evaluations, trainer.progress.seconds
    return {
        "seed": config.seed,
        "reward_gain": gain,
        "ci_low": changes["reward"].ci95[0],
        "ci_high": changes["reward"].ci95[1],
        "validation_gain": curve[-1]["validation_gain"],
        "curve": curve,
        "gain_per_1000_evaluations": 1000 * gain / evaluations,
        "gain_per_minute": 60 * gain / seconds,
        "identity_distance_gain": changes["identity_distance"].gain,
        **{name: changes[name].after for name in ("blemish_residual", "texture_error", "tone_error", "residual_grain")},
        "diversity_first": fmean(step["diversity"] for step in steps[:5]),
        **{name: fmean(step[name] for step in steps[-5:]) for name in steps[0]},
        "seconds": seconds,
        "train_steps": trainer.progress.step,
        "network_evaluations": evaluations,
    }


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
STYLE = {"font.family": "DejaVu Sans", "font.size": 9, "savefig.dpi": 160, "savefig.facecolor": "white"}
STYLE |= {"axes.axisbelow": True, "grid.color": "#e6e8eb", "grid.linewidth": 0.7}
STYLE |= dict.fromkeys((f"axes.spines.{side}" for side in ("left", "right", "top", "bottom")), False)
STYLE |= {f"{axis}tick.{name}": value for axis in "xy" for name, value in (("major.size", 0), ("labelcolor", "#68707a"))}


def ablation_plot(rows: Sequence[Row], path: Path) -> None:
    """Draw the ablation: one line an arm (in the order given), one dot a seed, a bar at the mean.

    Args:
        rows: one run each, with `arm`, `seed`, the fields of `PANELS`, and `ci_low` and `ci_high` of the reward gain.
        path: the PNG to write.
    """
    arms = _by_arm(rows)
    places = range(len(arms) - 1, -1, -1)
    with mpl.rc_context(STYLE):
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
            axes.grid(axis="x")
            axes.margins(x=0.08)
            axes.xaxis.set_major_locator(MaxNLocator(5 if key == "reward_gain" else 3))
        panels[0].set_yticks(list(places), labels=list(arms), color="#1b1f24", fontsize=9.5, parse_math=False)
        panels[0].set_ylim(-0.6, len(arms) - 0.4)
        figure.supxlabel("dot: a seed, with its 95 % interval over people; bar: mean of the arm", fontsize=8, color="#68707a")
        figure.savefig(path, format="png")


def curves_plot(rows: Sequence[Row], path: Path) -> None:
    """Draw what each arm has gained on validation people by network evaluations and by seconds: the mean of its seeds, part by part of the
    budget; rows without a `curve` are left out.
    """
    known = [row for row in rows if row.get("curve")]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.4), layout=ConstrainedLayoutEngine(w_pad=0.12))
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (key, name) in zip(
            panels, (("network_evaluations", "network evaluations"), ("seconds", "seconds of training")), strict=True
        ):
            for place, (arm, runs) in enumerate(_by_arm(known).items()):
                parts = list(zip(*(cast(list[dict[str, float]], run["curve"]) for run in runs), strict=False))
                spent, gained = ([0.0, *(fmean(point[what] for point in part) for part in parts)] for what in (key, "validation_gain"))
                axes.plot(
                    spent, gained, color=mpl.colormaps["tab10"](place % 10), linestyle="--" if place > 9 else "-", marker=".", label=arm
                )
            axes.set_xlabel(name, color="#68707a")
            axes.axhline(0, color="#68707a", linewidth=0.8, zorder=1)
            axes.grid()
        panels[0].set_title("Reward gain on validation people, anchor-free ODE", loc="left", fontsize=10, color="#1b1f24")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8.5)
        figure.savefig(path, format="png")


def _draw_arm(axes: Axes, place: int, runs: Sequence[Row], key: str, colour: str) -> None:
    values = [as_float(run.get(key)) for run in runs]
    offsets = [0.0] if len(runs) == 1 else [0.17 - 0.34 * i / (len(runs) - 1) for i in range(len(runs))]
    if key == "reward_gain":
        for run, offset in zip(runs, offsets, strict=True):
            ends = as_float(run.get("ci_low")), as_float(run.get("ci_high"))
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
        cells += [_mean_and_range([as_float(run.get(key)) for run in runs], form) for key, _, form in COLUMNS]
        if len(runs) == 1:
            cells[2] += " [{:+.3f}, {:+.3f}]".format(*(as_float(runs[0].get(end)) for end in ("ci_low", "ci_high"))).replace("-", "−")
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
