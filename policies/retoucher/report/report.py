"""`report.html` of an `align-retoucher` run, one file that shows what came out, and its model card, made from the run folder."""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFont

from policies.retoucher.config import RetoucherConfig
from policies.retoucher.evaluate import Evaluation, EvaluationSet
from policies.retoucher.model.adapter import FILE
from policies.retoucher.report.results import (
    Json,
    Photo,
    Run,
    caveats,
    duration,
    findings,
    headline,
    meaning_of,
    read_measures,
    read_run,
    warnings,
)
from portraitkit.errors import DataError
from portraitkit.pictures.images import read_image, to_pil, write_image
from portraitkit.report.card import Card, Table, base_of, by_group, cell, counted, named_licence, write_card
from portraitkit.report.charts import as_float, curve_svg, series_of
from portraitkit.report.page import AMPLIFY, Tile, data_uri, in_percent, number, plural, setup, signed, tile, write_page, zoom_box
from preference_data.pair_set import list_photos
from preference_data.schema import TITLES

TEMPLATES = Path(__file__).parent / "templates"
Plot = tuple[str, str, Markup]
SIGNALS = (
    ("reward_std", "Spread in a group", "of the candidates' reward; at 0 nothing is learned"),
    ("diversity", "Diversity of a group", "distance of two candidates, of a pixel's range"),
    ("ratio_deviation", "Ratio deviation", "largest |ratio − 1|; rounding only while on policy"),
    ("gradient_norm", "Gradient norm", "before clipping"),
    ("loss", "Loss", "near 0 on policy: no sign of progress"),
    ("clipped", "Clipped share", "of the ratios"),
    ("judge_agreement", "Judge's agreement", "rank correlation with the verifiable rewards inside groups"),
    ("kl", "KL to the base", "per latent dimension"),
)
"""Logged values of training, their titles, and how to read them."""
RANK_TITLES = {"overall": "Overall", **TITLES}
FILES = ("README.md", FILE)  # What of a run folder is pushed: no picture of anybody
SETTINGS = ("backbone", "resolution", "num_steps", "eval_num_steps", "guidance", "sampler", "eta", "window", "dpg", "group_size")
SETTINGS += ("photos_per_step", "rewards", "combine", "loss", "max_train_steps", "learning_rate", "rank", "lora_alpha", "keep_best", "seed")
"""Options that the card names."""

# ---- the photos: which are shown first, and what is shown of each

KINDS = {"input": "Input", "base": "Base", "aligned": "Aligned", "clean": "Clean reference"}


@dataclass(frozen=True)
class Figure:
    """Everything shown of one photo; `box` is the zoomed square as left, top, width, height in percent, or None."""

    photo: Photo
    label: str
    tiles: list[Tile]
    box: tuple[float, float, float, float] | None = None


def ranked(photos: Sequence[Photo]) -> list[Photo]:
    """Largest gain first; photos without a gain last."""
    return sorted(photos, key=lambda photo: (not math.isfinite(photo.gain), -photo.gain if math.isfinite(photo.gain) else 0.0, photo.row))


def featured(photos: Sequence[Photo], each: int = 3) -> list[tuple[str, Photo]]:
    """`each` of the best, the middle and the worst by gain, labelled with their rank; all where there are few."""
    order = ranked(photos)
    count = len(order)
    each = min(each, -(-count // 3))
    places = dict.fromkeys(range((count - each) // 2, (count - each) // 2 + each), "median")
    places |= dict.fromkeys(range(count - each, count), "worst") | dict.fromkeys(range(each), "best")
    return [(f"{places[place]}, rank {place + 1} of {count}", order[place]) for place in sorted(places)]


def figure_of(folder: Path, photo: Photo, label: str, *, zoomed: bool = True) -> Figure | None:
    """A photo with zooms and difference maps, or without and compressed a little; None where its pictures are not in the folder."""
    pictures = _read(folder, photo.row)
    if pictures is None:
        return None
    if not zoomed:
        return Figure(photo, label, [Tile(KINDS[kind], data_uri(picture, lossless=0), kind=kind) for kind, picture in pictures.items()])
    source = pictures["input"]
    box = zoom_box(source, pictures.get("clean", pictures["aligned"]))
    tiles = [tile(KINDS[kind], picture, source, box, kind=kind) for kind, picture in pictures.items()]
    return Figure(photo, label, tiles, in_percent(box, source.size))


def write_overview(folder: Path, target: Path, *, photos: int = 4, side: int = 240) -> None:
    """One picture of a run: its first held-out photos (not chosen by result), a row each, enlarged by Lanczos."""
    rows = [pictures for row in range(photos) if (pictures := _read(folder, row)) is not None]
    kinds = [kind for kind in KINDS if rows and all(kind in pictures for pictures in rows)]
    gap, head = 4, 28
    sheet = Image.new("RGB", (len(kinds) * (side + gap) - gap, head + len(rows) * (side + gap) - gap), "white")
    draw = ImageDraw.Draw(sheet)
    for column, kind in enumerate(kinds):
        draw.text((column * (side + gap) + side / 2, head / 2), KINDS[kind], fill="black", font=ImageFont.load_default(16), anchor="mm")
        for place, pictures in enumerate(rows):
            enlarged = pictures[kind].resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(enlarged, (column * (side + gap), head + place * (side + gap)))
    sheet.save(target)


def _read(folder: Path, row: int) -> dict[str, Image.Image] | None:
    paths = {kind: folder / f"{row:03d}_{kind}.png" for kind in KINDS}
    if not all(paths[kind].is_file() for kind in ("input", "base", "aligned")):
        return None
    return {kind: to_pil(read_image(path).pixels) for kind, path in paths.items() if path.is_file()}


def write_pictures(folder: Path, data: EvaluationSet, base: Evaluation, aligned: Evaluation) -> None:
    """Write the photos of an evaluation as `<row>_<kind>.png`, and what was measured on each as `values.jsonl`."""
    folder.mkdir(exist_ok=True)
    photos = data.batch.photos
    lines = []
    for row, name in enumerate(data.batch.ids):
        pictures = {"input": photos.source[row], "base": base.pictures[row], "aligned": aligned.pictures[row]}
        if not photos.clean[row].isnan().any():
            pictures["clean"] = photos.clean[row]
        for kind, pixels in pictures.items():
            write_image(folder / f"{row:03d}_{kind}.png", pixels)
        values = {
            when: {key: None if math.isnan(v := float(value[row])) else v for key, value in evaluation.values.items()}
            for when, evaluation in (("before", base), ("after", aligned))
        }
        lines.append(json.dumps({"id": name, "person": data.batch.people[row], **values}))
    (folder / "values.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


# ---- the page


def write_report(folder: Path) -> Path:
    """Write `report.html` into the folder of a finished run: one file, no outside requests, everything escaped; returns its path. It reads
    config.json, environment.json, summary.json, metrics.jsonl, and held_out/ where there are pictures."""
    return write_page(folder / "report.html", TEMPLATES / "report.html.j2", _context(read_run(folder)))


def _context(run: Run) -> dict[str, object]:
    measures, folder = read_measures(run), run.folder / "held_out"
    figures = [figure for label, photo in featured(run.photos) if (figure := figure_of(folder, photo, label))]
    shown = {figure.photo.row for figure in figures}
    median = [figure for figure in figures if figure.label.startswith("median")] or figures[:1]
    hero = median[len(median) // 2] if median else None  # the large comparison: a typical photo, not the best
    ranks = {photo.row: f"rank {rank} of {len(run.photos)}" for rank, photo in enumerate(ranked(run.photos), start=1)}
    both = [line for line in run.validation if "rollout_reward" in line and "ode_reward" in line]
    lines = [series_of(run.train, "reward", kind="line", colour="muted"), series_of(both, "ode_reward", kind="dots")]
    rollout_plots = _drawn([("Rollout reward", "not progress", curve_svg(lines, least_span=0.04))])
    others = (figure_of(folder, photo, ranks[photo.row], zoomed=False) for photo in run.photos if photo.row not in shown)
    return {
        "title": f"Alignment report: {run.folder.resolve().name}",
        "headline": headline(measures.get("reward")),
        "findings": findings(measures),
        "caveats": caveats(run.config, run.summary),
        "warnings": warnings(measures),
        "facts": _facts(run),
        "measures": list(measures.values()),
        "figures": figures,
        "hero": hero and (hero.label, {tile.kind: tile.picture for tile in hero.tiles}),
        "rest": list(filter(None, others)),
        "photo_measures": [name for name in ("blemish_residual", "texture_error", "identity_distance") if name in measures],
        "titles": {name: meaning_of(name).title.lower() for name in measures},
        "amplify": AMPLIFY,
        "validation_plots": _validation_plots(run, list(measures)),
        "judge_plots": _judge_plots(run),
        "judge_rank": [(RANK_TITLES[name], row) for name, row in (run.summary.get("judge_rank") or {}).items()],
        "rollout_plot": next(iter(rollout_plots), None),
        "training_plots": _training_plots(run),
        "alarms": run.summary.get("alarms") or [],
        "files": _files(run.folder),
        **setup(run.environment, run.config, RetoucherConfig),
    }


def _facts(run: Run) -> list[tuple[str, str]]:
    summary = run.summary
    photos, people = summary.get("photos") or {}, summary.get("people") or {}
    total, seconds = as_float(summary.get("seconds_total")), duration(as_float(summary.get("seconds")))
    facts = [
        ("held-out photos", photos.get("held_out", len(run.photos))),
        ("people", ", ".join(f"{count} {split.replace('_', '-')}" for split, count in people.items()) or None),
        ("training steps", summary.get("train_steps")),
        ("training time", f"{seconds} ({duration(total)} in all)" if math.isfinite(total) else seconds),
        ("network evaluations", f"{summary['network_evaluations']:,}" if isinstance(summary.get("network_evaluations"), int) else None),
        ("seed", ", ".join(map(str, summary.get("seeds") or [])) or None),
        ("hardware", summary.get("hardware")),
    ]
    return [(name, str(value)) for name, value in facts if value is not None]


def _files(folder: Path) -> list[tuple[str, str]]:
    """(name, size) of what the run folder holds; a folder is one line."""
    out = []
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith((".", "report.html"))):
        inside = [file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
        size = f"{sum(file.stat().st_size for file in inside) / 1024:,.0f} KiB"
        out.append((f"{path.name}/", f"{plural(len(inside), 'file')}, {size}") if path.is_dir() else (path.name, size))
    return out


# ---- curves: title, how to read it, and the drawing


def _validation_plots(run: Run, names: Sequence[str]) -> list[Plot]:
    out = []
    for name in names:
        points = [line for line in run.validation if name in line]
        ends = [line.get(f"{name}_ci95") or (None, None) for line in points]
        series = series_of(points, name, low=[as_float(low) for low, _ in ends], high=[as_float(high) for _, high in ends])
        better = "higher is better" if name in ("reward", "verifiable", *run.rewards) else "lower is better"
        step = as_float(run.summary.get("best_step"))
        best = step if math.isfinite(step) and run.config.get("keep_best", True) else None
        out.append((meaning_of(name).title, better, curve_svg([series], mark=best, least_span=0.04)))
    return _drawn(out)


def _judge_plots(run: Run) -> list[Plot]:
    """For each judge its reward and the verifiable rewards in one panel: at validation, and over the rollouts."""
    out = []
    for name in run.judges:
        for title, lines, key in (("at validation", run.validation, name), ("of the rollouts", run.train, f"parts/{name}")):
            both = [line for line in lines if key in line and "verifiable" in line]
            kind = "measured" if lines is run.validation else "line"
            svg = curve_svg([series_of(both, key, kind=kind), series_of(both, "verifiable", kind=kind, colour="muted")], least_span=0.04)
            out.append((f"{meaning_of(name).title}, {title}", "coloured: the judge; grey: the verifiable rewards", svg))
    return _drawn(out)


def _training_plots(run: Run) -> list[Plot]:
    out, loss = [], run.config.get("loss")
    for key, title, reads in SIGNALS:
        unused = key in ("clipped", "kl") and not any(as_float(line.get(key)) > 0 for line in run.train)
        if unused or (loss == "nft" and key == "ratio_deviation"):  # it has no ratio
            continue
        if loss in ("nft", "neighbor") and key == "kl":
            title, reads = "Distance from the base", "squared, of the latents that both predict"
        svg = curve_svg([series_of(run.train, key, kind="line", colour="muted")], log=key == "ratio_deviation")
        out.append((title, reads, svg))
    return _drawn(out)


def _drawn(plots: Sequence[Plot]) -> list[Plot]:
    """Those in which a value could be drawn."""
    return [plot for plot in plots if plot[2]]


# ---- the model card


def write_retoucher_card(folder: Path, base_model: str, licence: str) -> Path:
    """Write `README.md` beside the LoRA of a finished run; returns its path. The base model is a hub id, a folder, or a name of ours."""
    run = read_run(folder)
    measures, base = read_measures(run), base_of(base_model, named_licence(licence))
    rows: dict[str, Json] = {}  # of a user's photos, by file name; without any, the card knows of no groups
    with suppress(DataError):  # it may have changed since the run began
        rows = {row["file_name"]: row for row in list_photos(Path(str(run.config.get("photos")))).rows}
    columns = [rows.get(photo.name, {}) for photo in run.photos]
    before, after = (torch.tensor([getattr(photo, when).get("reward", torch.nan) for photo in run.photos]) for when in ("before", "after"))
    figures = [
        (
            *(measure.meaning.title, number(measure.untouched), number(measure.before), number(measure.after)),
            *(f"{signed(measure.gain)} ({measure.interval})", "higher" if measure.higher_is_better else "lower"),
        )
        for measure in measures.values()
    ]
    names = ("", "untouched photo", "base", "this LoRA", "change (95 % interval)", "better is")
    note = "Means over held-out photos, made by the plain ODE without anchors. The change's bootstrap interval is paired, over people."
    card = Card(
        title="A portrait retoucher by portraitkit",
        headline=" ".join([headline(measures.get("reward")), *warnings(measures)]),
        base=base,
        data=_provenance(run, rows),
        synthetic=run.config.get("photos") == "embedded",
        held_out="photos",
        tables=[Table("Held-out photos", names, figures, note)],
        measured="Reward",
        groups=by_group(columns, before, after, [photo.person for photo in run.photos]),
        settings={name: run.config[name] for name in SETTINGS if name in run.config},
        versions=run.environment.get("versions") or {},
        results={name: measures[name].after for name in ("reward", "identity_distance", "blemish_residual") if name in measures},
        task="image-to-image",
        library="diffusers",
        tags=("lora", "grpo", "portrait-retouching"),
        adapter=True,
    )
    shown = {"prompt": cell(run.config.get("prompt", "")), "caveats": caveats(run.config, run.summary)[1:]}
    source = None if base_model.startswith("portraitkit/") else base.hub_id if base.hub_id == base_model else "BASE"
    return write_card(folder, card, TEMPLATES / "retoucher_card.md.j2", source=source, **shown)


def _provenance(run: Run, rows: dict[str, Json]) -> list[str]:
    photos, people = run.summary.get("photos") or {}, run.summary.get("people") or {}
    counts = ", ".join(f"{name.replace('_', '-')} {count} (people: {people.get(name, '?')})" for name, count in photos.items())
    if run.config.get("photos") == "embedded":
        return [
            "**Synthetic**: morphs of two public-domain portraits with painted blemishes, made by code, so that the clean face is known. "
            "No photo of a user is in them.",
            f"Photos seen: {counts}. The held-out people were never trained on.",
        ]
    licences, consent = (counted(str(row.get(name) or "") for row in rows.values()) for name in ("licence", "consent"))
    anchored = f"{sum(bool(row.get('anchor_file_name')) for row in rows.values())} of them with a retouch by hand as anchor"
    kinds = {"painted": "taken as clean portraits, blemishes painted onto them", "best-of-n": "the policy's best rollouts as anchors"}
    kind = kinds.get(str(run.config.get("anchors")), anchored)
    return [
        f"The user's folder `{cell(Path(str(run.config.get('photos'))).name)}`: {len(rows)} photos, {kind}.",
        f"Licences: {licences}. Consent: {consent}.",
        f"Photos seen: {counts}.",
    ]
