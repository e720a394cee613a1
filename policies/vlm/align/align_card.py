"""The model card of an `align-vlm` run, made from the run folder alone."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from policies.vlm.align.align_config import usual_rate
from policies.vlm.align.align_report import headline
from portraitkit.report.card import Card, Result, Table, base_of, cell, counted, figure, group_tables, interval, write_card
from portraitkit.stats import bootstrap_interval
from portraitkit.vlm.rows import Row
from portraitkit.vlm.trainer_options import rate_of

GROUPS = ("age_band", "age", "gender", "sex", "skin_tone", "race", "ethnicity")
"""Columns, or keys of meta_info, that tell people apart."""
MOST_GROUPS = 12
SETTINGS = ("stages", "mode", "max_train_steps", "prompts_per_step", "group_size", "learning_rate", "beta", "loss_type", "rank")
SETTINGS += ("lora_alpha", "weights", "freeze_vision", "sft_steps", "sft_learning_rate", "max_tokens", "max_pixels", "dtype", "seed")


def by_group(rows: Sequence[Row], before: Float[Tensor, " n"], after: Float[Tensor, " n"]) -> dict[str, dict[str, dict[str, Any]]]:
    """Greedy reward before and after by each column that tells people apart and is there: column -> value -> figures."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for column in GROUPS:
        values = [_group(row.columns, column) for row in rows]
        known = sorted({value for value in values if value is not None})
        if not 1 <= len(known) <= MOST_GROUPS:
            continue
        found[column] = {}
        for name in known:
            where = torch.tensor([value == name for value in values])
            some = {"before": float(before[where].mean()), "after": float(after[where].mean()), "n": int(where.sum())}
            found[column][name] = {**some, "ci95": bootstrap_interval(after[where])}
    return found


def provenance(rows: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """What the rows of all splits say of licence and consent, counted; only what at least one of them says."""
    every = [row for some in rows.values() for row in some]
    said = {name: [_group(row.columns, name) or "" for row in every] for name in ("licence", "license", "consent")}
    return {name: counted(values) for name, values in said.items() if any(values)}


def _group(columns: Mapping[str, Any], name: str) -> str | None:
    meta = columns.get("meta_info")
    value = columns.get(name, meta.get(name) if isinstance(meta, Mapping) else None)
    return str(value) if isinstance(value, str | int | float) and str(value) else None


def write_align_card(folder: Path) -> Path:
    """Write `model/README.md` of a finished run; returns its path.

    Args:
        folder: of the run, with config.json, summary.json, environment.json and model/.
    """
    config, summary, environment = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("config", "summary", "environment")
    )
    held_out, task = summary["held_out"], summary["task"]
    synthetic = summary["synthetic"]
    adapter = bool(config["rank"])
    settings = _settings(config)
    card = Card(
        title=f"{task} by portraitkit",
        what=f"A vision-language model aligned with the verifiable rewards of the task {task} by supervised fine-tuning or GRPO "
        f"(stages: {', '.join(config['stages'])}). The prompt that it was trained on is the task's "
        f"{summary['prompt']} one.",
        headline=headline(summary),
        base=base_of(config["model"], embedded="the embedded tiny Qwen2.5-VL of portraitkit (2.9 M parameters, trained on synthetic rows)"),
        data=_provenance(config, summary),
        tables=(*_figures(summary), *group_tables(summary.get("groups", {}), "Greedy reward")),
        limits=_limits(summary),
        settings=(
            *((name.replace("_", " "), cell(settings[name])) for name in settings),
            *([("processes", str(summary["processes"]))] if summary.get("processes", 1) > 1 else []),
            *((name, version) for name, version in environment["versions"].items() if version),
        ),
        usage=_usage(adapter),
        data_name=f"{task}, {'synthetic' if synthetic else 'own'} held-out rows",
        results=(Result("greedy reward", held_out["greedy"]["after"]), Result("sampled reward", held_out["sampled"]["after"])),
        task="image-text-to-text",
        library="peft" if adapter else "transformers",
        tags=("grpo", "trl", task, *(("synthetic-data",) if synthetic else ())),
        adapter=adapter,
    )
    return write_card(folder / "model", card)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was trained with, of the stages that it had."""
    rate = rate_of(config["learning_rate"], config["weights"], config["rank"], usual_rate(config["model"], config["rank"]))
    settings = {name: config[name] for name in SETTINGS if name in config} | {"learning_rate": rate}
    foreign = ("learning_rate", "weights") if "grpo" not in config["stages"] else ("weights",) if config["rank"] else ()
    foreign += ("sft_steps", "sft_learning_rate") if "sft" not in config["stages"] else ()
    return {name: value for name, value in settings.items() if name not in foreign}


def _provenance(config: Mapping[str, Any], summary: Mapping[str, Any]) -> tuple[str, ...]:
    counts = ", ".join(f"{name.replace('_', '-')} {count}" for name, count in summary["rows"].items())
    if summary["synthetic"]:
        first = "**Synthetic**: every picture and its truth were made by code (`--data embedded`). No photo of a user is in them."
    else:
        first = (
            f"Rows of a user's folder `{cell(Path(config['data']).name)}`. Whether its pictures may be used so, and whether the people in "
            "them agreed, its owner must know: this card knows no more than what follows."
        )
    said = [f"{name.capitalize()} as the rows say: {counts}." for name, counts in summary["provenance"].items()]
    lines = [first, *said, f"Rows: {counts}. The held-out rows were looked at before and after training only."]
    if summary.get("reward_file"):
        lines.append(f"The reward is a function of the user's own (`{cell(summary['reward_file'])}`), not the task's.")
    if config.get("adapter"):
        lines.append("Training went on from a LoRA of an earlier run, whose data are described in that run's card.")
    return tuple(lines)


def _figures(summary: Mapping[str, Any]) -> tuple[Table, ...]:
    held_out, metrics = summary["held_out"], summary["metrics"]
    rows = []
    for name in ("greedy", "sampled"):
        row = held_out[name]
        gain = f"{row['gain']:+.3f} ({interval(row['gain_ci95'])})"
        rows.append((f"{name} reward", figure(row["before"]), figure(row["after"]), interval(row["ci95_after"]), gain))
    shuffled = figure(held_out["shuffled_image"]), figure(held_out["shuffled_image_after"])
    rows.append(("greedy, another row's picture", *shuffled, "–", "–"))
    rows.append(("best constant answer", figure(held_out["constant_floor"]), figure(held_out["constant_floor"]), "–", "–"))
    note = f"{held_out['n']} rows, {summary['mode']} rewards. Intervals are 95 % bootstrap intervals over rows; the gain's is paired."
    tables = [Table("Reward", ("", "before", "after", "95 % interval of after", "gain (95 % interval)"), tuple(rows), note)]
    if metrics["before"]:
        lines = tuple((name, figure(value), figure(metrics["after"].get(name))) for name, value in metrics["before"].items())
        tables.append(Table("Besides the reward", ("of the greedy answers", "before", "after"), lines))
    return tuple(tables)


def _limits(summary: Mapping[str, Any]) -> tuple[str, ...]:
    lines = [
        "One run with one seed: the intervals say nothing about other seeds.",
        "The reward is what a program can check in an answer. Reasoning in words is not checked beyond its form.",
        "It was not tried on people, cameras and light other than those of the rows above.",
    ]
    if summary["synthetic"]:
        lines.insert(0, "Learned and measured on synthetic pictures only: nothing is known about real photos.")
    if not summary.get("groups"):
        lines.append("The held-out rows do not say who is shown: whether it serves all groups of people alike is **not known**.")
    if summary["task"] in ("emotion", "makeup", "makeup-lips", "preference"):
        lines.append("Not for decisions about people: what a face shows is not what a person feels, is or deserves.")
    return tuple(lines)


def _usage(adapter: bool) -> str:
    if adapter:
        return 'from peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base, "OWNER/NAME")'
    return (
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
        'model = AutoModelForImageTextToText.from_pretrained("OWNER/NAME")\nprocessor = AutoProcessor.from_pretrained("OWNER/NAME")'
    )
