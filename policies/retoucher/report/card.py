"""The model card of an `align-retoucher` run, made from the run folder and, for a user's photos, their metadata."""

from pathlib import Path
from typing import Any

import torch

from policies.retoucher.model.adapter import FILE
from policies.retoucher.report.results import Run, caveats, headline, read_measures, read_run, warnings
from portraitkit.errors import DataError
from portraitkit.files.jsonl import read_objects
from portraitkit.report.card import Base, Card, Result, Table, cell, counted, group_tables, named_licence, write_card
from portraitkit.report.page import number, signed
from portraitkit.stats import person_interval

FILES = ("README.md", FILE)
"""What of a run folder is pushed: no picture of anybody."""
GROUPS = ("age_band", "age", "gender", "sex", "skin_tone", "race", "ethnicity")
MOST_GROUPS = 12
SETTINGS = (
    "backbone",
    "resolution",
    "num_steps",
    "eval_num_steps",
    "guidance",
    "sampler",
    "eta",
    "window",
    "dpg",
    "group_size",
    "photos_per_step",
    "rewards",
)
SETTINGS += ("combine", "max_train_steps", "learning_rate", "rank", "lora_alpha", "keep_best", "seed")


def write_retoucher_card(folder: Path, base_model: str, licence: str) -> Path:
    """Write `README.md` beside the LoRA; returns its path.

    Args:
        folder: of the finished run.
        base_model: of the backbone: a hub id, or a name of ours.
        licence: of the base.
    """
    run = read_run(folder)
    measures = read_measures(run)
    embedded = run.config.get("photos") == "embedded"
    own = base_model.startswith("portraitkit/")
    local = Path(base_model).is_dir()
    name = "/".join(Path(base_model).resolve().parts[-2:]) if local else base_model
    reward = measures.get("reward")
    rows = _rows(run)
    tables = [*_figures(run), *group_tables(_groups(run, rows), "Reward")]
    limits = [line for line in caveats(run.config, run.summary) if not line.startswith("The photos are")]
    limits.append("It retouches one aligned face at the resolution below; everything else of a picture is not its business.")
    limits.append("Not for photos whose people did not agree, and not to pass a retouched photo off as an untouched one.")
    if len(tables) == 1:
        limits.append("The held-out photos do not say who is shown: whether it serves all groups of people alike is **not known**.")
    card = Card(
        title="A portrait retoucher by portraitkit",
        what="A LoRA that makes a diffusion image editor retouch portraits as the rewards below ask for: blemishes gone, pores, tone and "
        f"the person kept. Instruction: “{cell(run.config.get('prompt', ''))}”.",
        headline=" ".join([headline(reward), *warnings(measures)]),
        base=Base(f"`{name}`" if own or local else name, None if own or local else base_model, named_licence(licence)),
        data=_provenance(run, rows, embedded),
        tables=tuple(tables),
        limits=tuple(limits),
        settings=(
            *((key.replace("_", " "), cell(run.config[key])) for key in SETTINGS if key in run.config),
            *((key, str(version)) for key, version in (run.environment.get("versions") or {}).items() if version),
        ),
        usage="" if own else _usage(base_model if not local else "BASE"),
        data_name=f"{'synthetic' if embedded else 'own'} held-out photos, plain ODE",
        results=tuple(Result(key, measures[key].after) for key in ("reward", "identity_distance", "blemish_residual") if key in measures),
        task="image-to-image",
        library="diffusers",
        tags=("lora", "grpo", "portrait-retouching", *(("synthetic-data",) if embedded else ())),
        adapter=True,
    )
    return write_card(folder, card)


def _rows(run: Run) -> dict[str, dict[str, Any]]:
    """The rows of a user's photos, by file name; none of the embedded ones."""
    path = Path(str(run.config.get("photos"))) / "metadata.jsonl"
    try:
        return {str(row.get("file_name")): row for _, row in read_objects(path)} if path.is_file() else {}
    except DataError:
        return {}  # it changed since the run began; the card then knows of no groups


def _provenance(run: Run, rows: dict[str, dict[str, Any]], embedded: bool) -> tuple[str, ...]:
    photos, people = run.summary.get("photos") or {}, run.summary.get("people") or {}
    counts = ", ".join(f"{name.replace('_', '-')} {count} ({people.get(name, '?')} people)" for name, count in photos.items())
    if embedded:
        first = (
            "**Synthetic**: morphs of two public-domain portraits with painted blemishes, made by code, so that the clean face is known. "
            "No photo of a user is in them."
        )
        return (first, f"Photos seen: {counts}. The held-out people were never trained on.")
    folder = cell(Path(str(run.config.get("photos"))).name)
    anchored = sum("anchor_file_name" in row for row in rows.values())
    return (
        f"The user's folder `{folder}`: {len(rows)} photos, {anchored} of them with a retouch by hand as anchor.",
        f"Licences: {counted(str(row.get('licence') or '') for row in rows.values())}. Consent: "
        f"{counted(str(row.get('consent') or '') for row in rows.values())}.",
        f"Photos seen: {counts}.",
    )


def _figures(run: Run) -> list[Table]:
    measures = read_measures(run).values()
    rows = [
        (
            measure.meaning.title,
            number(measure.untouched),
            number(measure.before),
            number(measure.after),
            f"{signed(measure.gain)} ({measure.interval})",
            "higher" if measure.higher_is_better else "lower",
        )
        for measure in measures
    ]
    columns = ("", "untouched photo", "base", "this LoRA", "change (95 % interval)", "better is")
    note = "Means over held-out photos, made by the plain ODE without anchors. The change's bootstrap interval is paired, over people."
    return [Table("Held-out photos", columns, tuple(rows), note)]


def _groups(run: Run, rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """The reward before and after by each column that tells people apart and is there."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for column in GROUPS:
        of = {photo.row: str(value) for photo in run.photos if (value := rows.get(photo.name, {}).get(column)) not in (None, "")}
        names = sorted(set(of.values()))
        if not 1 <= len(names) <= MOST_GROUPS:
            continue
        found[column] = {}
        for name in names:
            some = [photo for photo in run.photos if of.get(photo.row) == name]
            before, after = (
                torch.tensor([getattr(photo, when).get("reward", torch.nan) for photo in some]) for when in ("before", "after")
            )
            means = {"before": float(before.nanmean()), "after": float(after.nanmean()), "n": len(some)}
            found[column][name] = {**means, "ci95": person_interval(after, [photo.person for photo in some])}
    return found


def _usage(base: str) -> str:
    return (
        "import torch\nfrom diffusers import DiffusionPipeline\n\n"
        f'pipeline = DiffusionPipeline.from_pretrained("{base}", dtype=torch.bfloat16)\npipeline.load_lora_weights("OWNER/NAME")'
    )
