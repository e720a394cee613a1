"""`report.html` and the model card of an `align-vlm` run, made from the run folder alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from policies.vlm.align.align_config import AlignVlmConfig
from policies.vlm.judge_probe import HEADS, JudgeProbe, Kind
from policies.vlm.tasks.shape_area import PUBLISHED_CURVES
from portraitkit.files.jsonl import read_json, read_objects
from portraitkit.report.card import Card, Table, base_of, cell, write_card
from portraitkit.report.charts import Reference, Series, curve_svg, series_of
from portraitkit.report.page import data_uri, interval, number, setup, signed, write_page
from portraitkit.stats import bootstrap_interval
from portraitkit.vlm.evaluate import Inversion, Probe

TEMPLATE = Path(__file__).parents[1] / "templates" / "align.html.j2"
SHOWN = 4
SMOOTH = 5
Json = dict[str, Any]
CHANGE = ("before", "ci95_before", "after", "ci95_after", "gain", "gain_ci95")  # Of a reward, in the table of the result
SETTINGS = ("stages", "mode", "max_train_steps", "prompts_per_step", "group_size", "learning_rate", "beta", "loss_type", "rank")
SETTINGS += ("lora_alpha", "weights", "freeze_vision", "sft_steps", "sft_learning_rate", "max_tokens", "max_pixels", "dtype", "seed")
"""Options that the card names."""
ON_FACES = ("emotion", "makeup", "makeup-lips", "preference")  # Tasks about how somebody looks


def write_report(folder: Path) -> Path:
    """Write `report.html` into the folder of a finished run, which has config.json, environment.json, probe.json, floors.json,
    summary.json, metrics.jsonl and answers.jsonl; returns its path.
    """
    config, summary, floors = (read_json(folder / f"{name}.json") for name in ("config", "summary", "floors"))
    metrics, held_out = [row for _, row in read_objects(folder / "metrics.jsonl")], summary["held_out"]
    context = {
        "title": f"align-vlm {summary['task']}",
        "headline": headline(summary),
        "held_out": True,
        "synthetic": summary["synthetic"],
        "rewards": _rewards(held_out),
        "facts": [
            ("held-out rows", held_out["n"]),
            ("rewards", summary["mode"]),
            ("minutes", f"{summary['seconds'] / 60:.1f}"),
            ("seed", summary["seed"]),
            ("model", config["model"]),
            *([("processes", summary["processes"])] if summary.get("processes", 1) > 1 else []),
        ],
        "plots": _plots(metrics, floors, _published(summary)),
        "metric_rows": [(name, value, summary["metrics"]["after"].get(name)) for name, value in summary["metrics"]["before"].items()],
        "examples": _examples(folder),
        "judged": judge_words(summary.get("judge"), metrics),
    }
    return write_page(folder / "report.html", TEMPLATE, context | _origin(folder, config))


def write_probe_report(folder: Path) -> Path:
    """Write `report.html` into the folder of a probe that no training followed, from its config.json, environment.json and probe.json;
    returns its path.
    """
    context = {"title": f"align-vlm {read_json(folder / 'probe.json')['task']}: probe", "held_out": False, "judged": []}
    return write_page(folder / "report.html", TEMPLATE, context | _origin(folder, read_json(folder / "config.json")))


def _origin(folder: Path, config: Json) -> Json:
    """How a run was made, and what its probe found."""
    found, judge = read_json(folder / "probe.json"), None
    example = found.pop("inversion_example")
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}  # JSON knows no tuples
    probe = Probe(**found, inversion_example=Inversion(**example) if example else None)
    if (path := folder / "judge_probe.json").is_file():
        said = read_json(path)
        kinds = tuple(Kind(**(kind | {"ci95": tuple(kind["ci95"])})) for kind in said["kinds"])
        judge = JudgeProbe(said["part"], said["judge"], said["total"], kinds).lines()
    probed = {"probe": probe.lines(), "advice": probe.advice(), "judge": judge, "judge_heads": HEADS}
    return probed | setup(read_json(folder / "environment.json"), config, AlignVlmConfig)


def _rewards(held_out: Json) -> list[Json]:
    """Lines of the table of the result."""
    columns, floor = ("name", "note", "before", "before_ci", "after", "after_ci", "gain", "gain_ci"), held_out["constant_floor"]
    shuffled = [held_out[f"shuffled_image{name}"] for name in ("", "_ci95", "_after", "_after_ci95")]
    rows = [
        *((name, "", *(held_out[name][key] for key in CHANGE)) for name in ("greedy", "sampled")),
        ("shuffled pictures", "greedy, each with another row's picture", *shuffled, None, None),
        ("best constant answer", held_out["constant_answer"], floor, None, floor, None, None, None),
    ]
    return [dict(zip(columns, row, strict=True)) for row in rows]


def headline(summary: Json) -> str:
    """What happened, in one sentence that the intervals allow."""
    held_out = summary["held_out"]
    greedy, sampled = held_out["greedy"], held_out["sampled"]
    words = []
    for name, row in (("Sampled reward", sampled), ("greedy", greedy)):
        low, high = row["gain_ci95"]
        verdict = "rose" if low > 0 else "fell" if high < 0 else "did not change beyond chance"
        words.append(f"{name} {verdict} ({signed(row['gain'])})")
    low = greedy["ci95_after"][0]
    looks = "It looks: " if low > max(held_out["constant_floor"], held_out["shuffled_image_after"]) else "It is not shown to look: "
    return (
        f"{words[0]}, {words[1]}. {looks}greedy {number(greedy['after'])} against {number(held_out['constant_floor'])} for the best "
        f"constant answer and {number(held_out['shuffled_image_after'])} with shuffled pictures."
    )


def _published(summary: Json) -> list[Reference]:
    """Where the published run of the same task began and ended; none for other tasks, or for rewards that it did not use."""
    curve = PUBLISHED_CURVES.get(summary["task"], ()) if summary["mode"] == "paper" and not summary.get("reward_file") else ()
    return [Reference(value, f"published, real model: {when} {value:g}") for when, value in zip(("start", "end"), curve, strict=False)]


def _plots(metrics: list[Json], floors: dict[str, float], published: Sequence[Reference]) -> list[tuple[str, str, str]]:
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
        svg = curve_svg([series_of(validation, "greedy")], floors=[floors["validation_constant"], floors["shuffled_image"]])
        reads = "dashed: best constant answer there; dash-dot: shuffled pictures, held-out rows, before training"
        plots.append(("Greedy reward on validation rows", reads, svg))
    for name, title, reads in (
        ("reward_std", "Spread inside a group", "0: nothing to learn from"),
        ("completions/mean_length", "Answer length", "tokens"),
        ("entropy", "Entropy", "of the tokens; a collapse ends exploration"),
        ("grad_norm", "Gradient norm", "before clipping"),
    ):
        plots.append((title, reads, curve_svg([series_of(steps, name, kind="line")])))
    return [plot for plot in plots if plot[2]]


def judge_words(found: Json | None, metrics: Sequence[Json]) -> list[str]:
    """What a judge said of the run, a sentence each; none without one."""
    if found is None:
        return []
    part = "check of action units (no judge)" if found["part"] == "unit_check" else "judge"
    words = [f"`{found['reward']}`, a {part}, was added to the reward with weight {found['weight']:g}."]
    if "gain" in found:
        words.append(
            f"It gives the greedy answers to {found['n']} held-out rows {number(found['before'])} before and {number(found['after'])} "
            f"after training, a gain of {signed(found['gain'])} ({interval(found['gain_ci95'])}); {found['unjudged']} rows could not be "
            "judged."
        )
    steps = [row["judge_agreement"] for row in metrics if isinstance(row.get("judge_agreement"), float)]
    if len(steps) > 1:
        low, high = bootstrap_interval(torch.tensor(steps))
        mean = sum(steps) / len(steps)
        trust = "" if low > 0 else " It is not shown to rank answers as the verifiable reward does: look at what it prefers."
        words.append(
            f"Inside groups its rank correlation with the verifiable reward was {mean:.2f} ({low:.2f} to {high:.2f}) over {len(steps)} "
            f"updates.{trust}"
        )
    return words


def _examples(folder: Path) -> list[tuple[str, list[Json]]]:
    """(heading, answers) of the most improved, typical and worst held-out rows, pictures included."""
    rows = [row for _, row in read_objects(folder / "answers.jsonl")]
    improved = sorted(rows, key=lambda row: row["before"]["reward"] - row["after"]["reward"])
    improved = [row for row in improved if row["after"]["reward"] > row["before"]["reward"]]
    by_reward = sorted(rows, key=lambda row: row["after"]["reward"])
    middle = max(len(rows) // 2 - SHOWN // 2, 0)
    groups = {"Most improved": improved[:SHOWN], "Typical": by_reward[middle : middle + SHOWN], "Worst": by_reward[:SHOWN]}
    for row in (row for some in groups.values() for row in some):
        row["pictures"] = [data_uri(folder / file, largest=256, lossless=96) for file in row["images"]]
    return list(groups.items())


# ---- the model card


def write_align_card(folder: Path) -> Path:
    """Write `model/README.md` of a finished run from its config.json, summary.json and environment.json; returns its path."""
    config, summary, environment = (read_json(folder / f"{name}.json") for name in ("config", "summary", "environment"))
    task, adapter = summary["task"], bool(config["rank"])
    foreign = ("learning_rate", "weights") if "grpo" not in config["stages"] else ("weights",) if config["rank"] else ()
    foreign += ("sft_steps", "sft_learning_rate") if "sft" not in config["stages"] else ()  # of stages that the run had not
    used = config | {"learning_rate": AlignVlmConfig.rate_of(config)}
    settings = {name: used[name] for name in SETTINGS if name in config and name not in foreign}
    card = Card(
        title=f"{task} by portraitkit",
        headline=headline(summary),
        base=base_of(config["model"]),
        data=_provenance(config, summary),
        synthetic=summary["synthetic"],
        held_out=f"rows of {task}",
        tables=_figures(summary),
        measured="Greedy reward",
        groups=summary.get("groups", {}),
        settings=settings | ({"processes": summary["processes"]} if summary.get("processes", 1) > 1 else {}),
        versions=environment["versions"],
        results={f"{name} reward": summary["held_out"][name]["after"] for name in ("greedy", "sampled")},
        task="image-text-to-text",
        library="peft" if adapter else "transformers",
        tags=("grpo", "trl", task),
        adapter=adapter,
    )
    shown = {"task": task, "stages": config["stages"], "prompt": summary["prompt"], "on_faces": task in ON_FACES}
    return write_card(folder / "model", card, TEMPLATE.with_name("align_card.md.j2"), **shown)


def _provenance(config: Json, summary: Json) -> list[str]:
    counts = ", ".join(f"{name.replace('_', '-')} {count}" for name, count in summary["rows"].items())
    lines = [
        "**Synthetic**: every picture and its truth were made by code (`--data embedded`). No photo of a user is in them."
        if summary["synthetic"]
        else f"Rows of a user's folder `{cell(Path(config['data']).name)}`. Whether its pictures may be used so, and whether the people in "
        "them agreed, its owner must know: this card knows no more than what follows.",
        *(f"{name.capitalize()} as the rows say: {said}." for name, said in summary["provenance"].items()),
        f"Rows: {counts}. The held-out rows were looked at before and after training only.",
    ]
    if summary.get("reward_file"):
        lines.append(f"The reward is a function of the user's own (`{cell(summary['reward_file'])}`), not the task's.")
    if summary.get("judge"):
        lines += judge_words(summary["judge"], [])
    if config.get("adapter"):
        lines.append("Training went on from a LoRA of an earlier run, whose data are described in that run's card.")
    return lines


def _figures(summary: Json) -> list[Table]:
    held_out, metrics = summary["held_out"], summary["metrics"]
    rows = []
    for row in _rewards(held_out):
        gain = f"{signed(row['gain'])} ({interval(row['gain_ci'])})" if row["gain_ci"] else None
        name = f"{row['name']} reward" if gain else row["name"]
        rows.append((name, number(row["before"]), number(row["after"]), interval(row["after_ci"]), gain))
    note = f"{held_out['n']} rows, {summary['mode']} rewards. Intervals are 95 % bootstrap intervals over rows; the gain's is paired."
    tables = [Table("Reward", ("", "before", "after", "95 % interval of after", "gain (95 % interval)"), rows, note)]
    if metrics["before"]:
        lines = [(name, number(value), number(metrics["after"].get(name))) for name, value in metrics["before"].items()]
        tables.append(Table("Besides the reward", ("of the greedy answers", "before", "after"), lines))
    return tables
