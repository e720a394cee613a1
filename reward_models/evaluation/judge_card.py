"""The model card of a judge, made from the folder of its `train-reward-model` run and its pair set."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from portraitkit.report.card import Card, Result, Table, base_of, cell, counted, figure, group_tables, interval, write_card
from portraitkit.vlm.trainer_options import rate_of
from preference_data.pair_set import scan_pairs
from reward_models.evaluation.figures import NAMES
from reward_models.evaluation.report import SHORT, headline, stages_of, warnings
from reward_models.training.config import RewardModelConfig

SETTINGS = ("stages", "shown", "form", "max_train_steps", "group_size", "learning_rate", "sft_steps", "sft_learning_rate", "rank")
SETTINGS += ("weights", "freeze_vision", "max_tokens", "max_pixels", "dtype", "seed")


def write_judge_card(folder: Path) -> Path | None:
    """Write `model/README.md` of a finished run; None where nothing was trained.

    Args:
        folder: of the run, with config.json, summary.json, environment.json and model/.
    """
    if not (folder / "model").is_dir():
        return None
    config, summary, environment = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("config", "summary", "environment")
    )
    rate = rate_of(config["learning_rate"], config["weights"], config["rank"], RewardModelConfig.USUAL_RATE)
    settings = config | {"learning_rate": rate}
    last = stages_of(summary)[-1]
    overall = summary["held_out"][last]["overall"]
    synthetic = config["data"] == "embedded"
    card = Card(
        title="A judge of portrait retouches by portraitkit",
        what="A vision-language model that sees a photo and two retouches, scores both on five dimensions (skin smoothing, blemish "
        "removal, skin tone and texture, clarity, personal features) and names the better one. `judge.json` says how it wants to be asked.",
        headline=" ".join([headline(summary), *warnings(summary)]),
        base=base_of(config["model"], embedded="the embedded tiny Qwen2.5-VL of portraitkit (2.9 M parameters, trained on synthetic rows)"),
        data=_provenance(config, summary),
        tables=(_figures(summary, last), *_hacks(summary), *group_tables(_groups(summary), "Right in both orders, overall,")),
        limits=_limits(summary, synthetic),
        settings=(
            *((name.replace("_", " "), cell(settings[name])) for name in SETTINGS if name in settings),
            *((name, version) for name, version in environment["versions"].items() if version),
        ),
        usage="# serve-judge, train-reward-model --evaluate and align-retoucher take it:\n"
        '# align-retoucher --reward judge:FOLDER\nfrom portraitkit.vlm.model import load_model\n\nmodel = load_model("FOLDER")',
        data_name=f"{'synthetic' if synthetic else 'own'} held-out pairs",
        results=(Result("right in both orders", overall["acc_consistent"]), Result("right", overall["acc_average"])),
        task="image-text-to-text",
        library="transformers",
        tags=("reward-model", "trl", *(("synthetic-data",) if synthetic else ())),
    )
    return write_card(folder / "model", card)


def _provenance(config: Mapping[str, Any], summary: Mapping[str, Any]) -> tuple[str, ...]:
    counts = ", ".join(f"{split.replace('_', '-')} {count}" for split, count in summary["pairs"].items())
    split = f"Pairs: {counts}. Nobody is in two splits; the held-out pairs were not trained on."
    if config["data"] == "embedded":
        return (
            "**Synthetic**: people morphed by code from two public-domain portraits, with painted blemishes; which retouch is better "
            "follows from known degradations, nobody judged.",
            split,
        )
    pairs = scan_pairs(Path(config["data"])).rows
    synthetic = sum(pair.synthetic for pair in pairs)
    return (
        f"The pair set `{cell(Path(config['data']).name)}`: {len(pairs)} pairs, **{synthetic} of them synthetic** (code altered what is "
        "compared).",
        split,
        f"Licences of the photos: {counted(pair.licence for pair in pairs)}. Consent: {counted(pair.consent for pair in pairs)}.",
        f"Judged by: {counted((pair.annotator for pair in pairs if pair.overall), nothing='not named')}; by `degradation` means that the "
        "truth follows from known faults.",
    )


def _figures(summary: Mapping[str, Any], last: str) -> Table:
    held_out = summary["held_out"]
    names = [name for name in NAMES if name in held_out[last]]
    rows = []
    for name in names:
        before, row = held_out["base"].get(name, {}), held_out[last][name]
        eyes = [value for key in ("blind", "shuffled_images", "majority") if (value := held_out.get(key, {}).get(name)) is not None]
        shown = figure(before.get("acc_consistent")), figure(row["acc_consistent"]), interval(row["ci95"])
        rows.append((SHORT[name], *shown, figure(row["acc_average"]), figure(max(eyes, default=None)), figure(row["p_first"])))
    columns = ("", "right in both orders, base", "this model", "95 % interval", "right", "right without eyes", "P(first)")
    note = f"{summary['pairs']['held_out']} held-out pairs, each in both orders. Intervals are bootstrap intervals over people."
    return Table("Verdicts", columns, tuple(rows), note)


def _hacks(summary: Mapping[str, Any]) -> tuple[Table, ...]:
    if not summary["hacks"]:
        return ()
    rows = tuple((name.replace("_", " "), figure(row["honest_wins"]), interval(row["ci95"])) for name, row in summary["hacks"].items())
    return (Table("Honest retouch against tricks", ("against", "honest wins", "95 % interval"), rows),)


def _groups(summary: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        column: {value: {"after": row["acc_consistent"], "ci95": row["ci95"], "n": row["n"]} for value, row in table["groups"].items()}
        for column, table in summary["groups"].items()
    }


def _limits(summary: Mapping[str, Any], synthetic: bool) -> tuple[str, ...]:
    lines = [
        "One run with one seed: the intervals say nothing about other seeds.",
        "It judges retouches of one aligned face on five dimensions. Other edits, groups of people and whole scenes were not tried.",
        "A policy that is trained against it will look for its mistakes: watch an independent measure beside it.",
        "Not for decisions about people: it says which retouch is better made, not who looks better.",
    ]
    if synthetic:
        lines.insert(0, "Learned and measured on synthetic pairs only: nothing is known about real photos and about people's taste.")
    if not summary["groups"]:
        lines.append("The held-out pairs do not say who is shown: whether it serves all groups of people alike is **not known**.")
    return tuple(lines)
