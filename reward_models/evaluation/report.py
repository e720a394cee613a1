"""What a run of `train-reward-model` found: a table on the screen, `report.html` and the model card, from the run folder and the pairs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from portraitkit.files.jsonl import read_json, read_objects
from portraitkit.pictures.images import write_image
from portraitkit.report.card import Card, base_of, cell, counted, write_card
from portraitkit.report.card import Table as Figures
from portraitkit.report.charts import Series, curve_svg, series_of
from portraitkit.report.page import data_uri, interval, number, plural, setup, signed, write_page
from preference_data.pair_set import scan_pairs
from preference_data.schema import DIMENSIONS, TITLES
from reward_models.evaluation.battery import read_judged
from reward_models.evaluation.figures import NAMES, truth_of
from reward_models.judge.pairs import Judged, JudgedPair, View
from reward_models.training.config import STAGES, RewardModelConfig

TEMPLATES = Path(__file__).parent / "templates"
SHOWN = 3
BIAS = 0.05
LOOSE = 0.1  # Share of verdicts that a change without a meaning may turn
SETTINGS = ("stages", "shown", "form", "max_train_steps", "group_size", "learning_rate", "sft_steps", "sft_learning_rate", "rank")
SETTINGS += ("weights", "freeze_vision", "max_tokens", "max_pixels", "dtype", "seed")
"""Options that the card names."""
SHORT = {name: name.replace("_", " ") for name in NAMES}
TITLE = {"overall": "Overall", **{name: TITLES[name] for name in DIMENSIONS}}


def stages_of(summary: Mapping[str, Any]) -> list[str]:
    """The models that were evaluated, in order."""
    return [name for name in ("base", *STAGES) if name in summary["held_out"]]


def print_result(console: Console, summary: dict[str, Any], folder: Path) -> None:
    """The main figures as a table."""
    held_out, stages = summary["held_out"], stages_of(summary)
    last = stages[-1]
    rows = {name: held_out[last][name] for name in NAMES if name in held_out[last]}
    tables = {
        f"Right in both orders, {plural(summary['pairs']['held_out'], 'held-out pair')}": (
            ("", *stages, "95 % interval"),
            lambda name, row: [*(number(held_out[one].get(name, {}).get("acc_consistent")) for one in stages), interval(row["ci95"])],
        ),
        f"An answer of {last}, and what needs no eyes": (
            ("", "right", "P(first)", "flips", "blind", "shuffled", "majority"),
            lambda name, row: [
                *(number(row[key]) for key in ("acc_average", "p_first", "flip_rate")),
                *(number(held_out.get(key, {}).get(name)) for key in ("blind", "shuffled_images", "majority")),
            ],
        ),
    }
    for title, (columns, cells) in tables.items():
        heads = (Column(name, justify="right" if name else "left", no_wrap=True) for name in columns)
        table = Table(*heads, title=title, title_justify="left")
        for name, row in rows.items():
            table.add_row(SHORT[name], *cells(name, row))
        console.print(table)
    for line in (headline(summary), *warnings(summary)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"report: {folder / 'report.html'}", highlight=False)


def headline(summary: Mapping[str, Any]) -> str:
    """What was found, in sentences that the intervals allow."""
    held_out, last = summary["held_out"], stages_of(summary)[-1]
    row = held_out[last]["overall"]
    floors = [value for key in ("blind", "shuffled_images", "majority") if (value := held_out.get(key, {}).get("overall")) is not None]
    looks = "It looks" if row["ci95"][0] > max(floors) else "It is not shown to look"
    words = [
        f"{row['acc_consistent']:.1%} of the held-out pairs are judged rightly in both orders ({row['ci95'][0]:.1%} to "
        f"{row['ci95'][1]:.1%}). {looks}: {max(floors):.1%} of single answers are right without eyes."
    ]
    if rank := summary.get("rollouts", {}).get("rank", {}).get("overall"):
        worth = "worth asking" if rank["rank"] is not None and rank["rank"] >= 0.5 else "not to be trusted"
        words.append(
            f"Inside groups of 16 rollouts of one policy its rank correlation with the verifiable rewards is {number(rank['rank'], 2)} "
            f"({interval(rank['ci95'])}, {rank['groups']} groups): as a reward it is {worth}."
        )
    if "grpo_gain" in held_out:
        change = held_out["grpo_gain"]
        low, high = change["ci95"]
        verdict = "rose" if low > 0 else "fell" if high < 0 else "did not change beyond chance"
        words.append(f"From SFT to GRPO it {verdict} ({signed(change['overall'])}, {signed(low)} to {signed(high)}).")
    return " ".join(words)


def warnings(summary: Mapping[str, Any]) -> list[str]:
    """What speaks against the judge, a sentence each."""
    last = stages_of(summary)[-1]
    cues, faces = summary.get("cues", {}), summary.get("clean_faces", {})
    named = {
        "Not shown to see through: ": [name for name, row in summary["hacks"].items() if row["ci95"][0] <= 0.5],
        "Swayed by what says nothing about the retouch: ": [name for name, row in cues.items() if (row["ci95"][0] or 0) > 0],
        # None: no answer could be read
        "Turned by changes without a meaning, too: the controls of ": [name for name, row in cues.items() if (row["control"] or 0) > LOOSE],
        "Not shown to prefer an untouched clean face to ": [name for name, row in faces.items() if row["ci95"][0] <= 0.5],
    }
    lines = [f"{text}{', '.join(names).replace('_', ' ')}." for text, names in named.items() if names]
    if summary["unreadable"][last]:
        lines.append(f"{summary['unreadable'][last]:.1%} of the answers cannot be read; they count as wrong.")
    first = summary["held_out"][last]["overall"]["p_first"]
    if first is not None and abs(first - 0.5) > BIAS:
        lines.append(f"The candidate shown first wins {first:.1%} of the verdicts: the place counts.")
    return lines


def write_report(folder: Path, pairs: Sequence[JudgedPair]) -> Path:
    """Write `report.html` into a finished run's folder, which has config.json, environment.json, summary.json, metrics.jsonl and the
    answers; returns its path. The held-out pairs are for the examples.
    """
    config, environment, summary = (read_json(folder / name) for name in ("config.json", "environment.json", "summary.json"))
    metrics = [row for _, row in read_objects(folder / "metrics.jsonl")]
    stages = stages_of(summary)
    context = {
        "title": "train-reward-model" if not config["evaluate"] else "train-reward-model --evaluate",
        "headline": headline(summary),
        "warnings": warnings(summary),
        "summary": summary,
        "held_out": summary["held_out"],
        "stages": stages,
        "last": stages[-1],
        "names": [name for name in NAMES if name in summary["held_out"][stages[-1]]],
        "titles": TITLE,
        "facts": [
            *((f"{split.replace('_', '-')} pairs", count) for split, count in summary["pairs"].items()),
            ("minutes", f"{summary['seconds'] / 60:.1f}"),
            ("seed", summary["seed"]),
            ("model", config["model"]),
        ],
        "plots": plots(metrics, summary),
        "examples": examples(folder, pairs, stages[-1]),
    }
    return write_page(folder / "report.html", TEMPLATES / "judge.html.j2", context | setup(environment, config, RewardModelConfig))


def plots(metrics: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(title, how to read it, SVG)."""
    svgs = []
    for stage in STAGES:
        points = [row for row in metrics if row.get("kind") == "validation" and row.get("stage") == stage]
        svg = curve_svg([series_of(points, "acc_consistent")], least_span=0.1)
        svgs.append((f"Validation during {stage}", "share right in both orders, overall", svg))
    for title, reads, kind, name in (
        ("Loss of SFT", "of the answers' tokens", "sft", "loss"),
        ("Loss of imitating kept trajectories", "of the answers' tokens", "reject", "loss"),
        ("Sampled reward of GRPO", "of 3, on the pairs that were still wrong", "grpo", "reward"),
        ("Spread inside a group", "0: nothing to learn from", "grpo", "reward_std"),
    ):
        points = [row for row in metrics if row.get("kind") == kind]
        svgs.append((title, reads, curve_svg([series_of(points, name, kind="line")])))
    rows = summary["calibration"]
    if len(rows) > 1:
        series = Series([row["difference"] for row in rows], [row["accuracy"] for row in rows])
        svgs.append(("Right against score difference", "overall, parts of equal count; dashed: chance", curve_svg([series], floors=[0.5])))
    return [plot for plot in svgs if plot[2]]


def examples(folder: Path, pairs: Sequence[JudgedPair], stage: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """(heading, pairs with pictures and both answers): right in both orders, changed with the order, wrong in both."""
    judged = read_judged(folder / stage / "held_out.jsonl", View(**read_json(folder / "view.json")))
    groups: dict[str, list[dict[str, Any]]] = {"Wrong in both orders": [], "Changed with the order": [], "Right in both orders": []}
    (folder / "held_out").mkdir(exist_ok=True)
    for number_, (pair, one) in enumerate(zip(pairs, judged, strict=True)):
        truth = truth_of(pair, "overall")
        hits = sum(verdict == truth for verdict in one.verdicts("overall"))
        rows = groups[list(groups)[hits]]
        if truth in ("a", "b") and len(rows) < SHOWN:
            rows.append(_example(folder, pair, one, number_))
    return [(name, rows) for name, rows in groups.items() if rows]


def _example(folder: Path, pair: JudgedPair, judged: Judged, place: int) -> dict[str, Any]:
    pictures = {}
    for name, pixels in zip(("photo", "a", "b"), pair.pixels(), strict=True):
        path = folder / "held_out" / f"{place:04d}-{name}.png"
        write_image(path, pixels)
        pictures[name] = data_uri(path, largest=256, lossless=96)
    rows = [(TITLE[name], truth_of(pair, name), *judged.verdicts(name)) for name in NAMES]
    return {"id": pair.id, "pictures": pictures, "rows": rows, "texts": judged.texts, "synthetic": pair.synthetic}


# ---- the model card


def write_judge_card(folder: Path) -> Path | None:
    """Write `model/README.md` of a finished run, from config.json, summary.json and environment.json; None where nothing was trained."""
    if not (folder / "model").is_dir():
        return None
    config, environment, summary = (read_json(folder / name) for name in ("config.json", "environment.json", "summary.json"))
    settings = config | {"learning_rate": RewardModelConfig.rate_of(config)}
    overall = summary["held_out"][stages_of(summary)[-1]]["overall"]
    hacks = [(name.replace("_", " "), number(row["honest_wins"]), interval(row["ci95"])) for name, row in summary["hacks"].items()]
    card = Card(
        title="A judge of portrait retouches by portraitkit",
        headline=" ".join([headline(summary), *warnings(summary)]),
        base=base_of(config["model"]),
        data=_provenance(config, summary),
        synthetic=config["data"] == "embedded",
        held_out="pairs",
        tables=[
            _verdicts(summary),
            *([Figures("Honest retouch against tricks", ("against", "honest wins", "95 % interval"), hacks)] if hacks else []),
        ],
        measured="Right in both orders, overall,",
        groups={
            column: {value: {"after": row["acc_consistent"], "ci95": row["ci95"], "n": row["n"]} for value, row in table["groups"].items()}
            for column, table in summary["groups"].items()
        },
        settings={name: settings[name] for name in SETTINGS if name in settings},
        versions=environment["versions"],
        results={"right in both orders": overall["acc_consistent"], "right": overall["acc_average"]},
        task="image-text-to-text",
        library="transformers",
        tags=("reward-model", "trl"),
    )
    return write_card(folder / "model", card, TEMPLATES / "judge_card.md.j2")


def _provenance(config: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    counts = ", ".join(f"{split.replace('_', '-')} {count}" for split, count in summary["pairs"].items())
    split = f"Pairs: {counts}. Nobody is in two splits; the held-out pairs were not trained on."
    if config["data"] == "embedded":
        return [
            "**Synthetic**: people morphed by code from two public-domain portraits, with painted blemishes; which retouch is better "
            "follows from known degradations. Nobody judged: people's taste is not in them.",
            split,
        ]
    pairs = scan_pairs(Path(config["data"])).rows
    return [
        f"The pair set `{cell(Path(config['data']).name)}`: {len(pairs)} pairs, **{sum(pair.synthetic for pair in pairs)} of them "
        "synthetic** (code altered what is compared).",
        split,
        f"Licences of the photos: {counted(pair.licence for pair in pairs)}. Consent: {counted(pair.consent for pair in pairs)}.",
        f"Judged by: {counted((pair.annotator for pair in pairs if pair.overall), nothing='not named')}; by `degradation` means that the "
        "truth follows from known faults.",
    ]


def _verdicts(summary: Mapping[str, Any]) -> Figures:
    held_out, last = summary["held_out"], stages_of(summary)[-1]
    rows = []
    for name in (name for name in NAMES if name in held_out[last]):
        row, base = held_out[last][name], held_out["base"].get(name, {})
        floors = [value for key in ("blind", "shuffled_images", "majority") if (value := held_out.get(key, {}).get(name)) is not None]
        both = number(base.get("acc_consistent")), number(row["acc_consistent"]), interval(row["ci95"])
        rows.append((SHORT[name], *both, number(row["acc_average"]), number(max(floors, default=None)), number(row["p_first"])))
    columns = ("", "right in both orders, base", "this model", "95 % interval", "right", "right without eyes", "P(first)")
    note = f"{summary['pairs']['held_out']} held-out pairs, each in both orders. Intervals are bootstrap intervals over people."
    return Figures("Verdicts", columns, rows, note)
