"""The command `make-preferences makeup`: bare and made-up pictures, and rows with the truth.

The folder: `images/`; `train.jsonl` and `test.jsonl`, no person in both; `quarantine.jsonl`,
the photos set aside and why; `contact_sheet.png`; `config.json`, `environment.json`; `faces.jsonl`, one line a photo that is done,
by which an interrupted run goes on; those set aside are tried again.
"""

import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor
from torch.nn.functional import pad

from portraitkit.config import config_to_dict, may_change
from portraitkit.errors import DataError, FaceError, ImageError
from portraitkit.faces.align import align_face
from portraitkit.files.jsonl import append_line, read_json_lines, write_lines
from portraitkit.pictures import list_images
from portraitkit.pictures.images import read_image, resize, write_image
from portraitkit.runs.folder import Maker, start_or_go_on
from portraitkit.runs.terminal import Interruptible, progress_bar
from preference_data import makeup_prompts
from preference_data.commands.options import MakeupConfig
from preference_data.people.makeup import BARE, PARAMETERS, draw_lips, draw_look, render_makeup
from preference_data.people.makeup_shapes import SHAPES
from preference_data.people.photos import cluster_identities, find_face, split_identities
from preference_data.people.synthetic import make_person

ENOUGH = 20  # photos seen before the share of unusable ones may stop the run
SHEET_FACES, SHEET_LOOKS, SHEET_CELL = 8, 4, 192
EMBEDDED_COUNT = 200
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class BareFace:
    """A face without makeup."""

    pixels: Float[Tensor, "3 h w"]  # RGB in [0, 1]
    mesh: Float[Tensor, "468 2"]  # x, y in pixels
    digest: str  # sha256 of the photo's file, or of the synthetic person's pixels
    identity: list[float]  # what the identity net sees, by which people are told apart; empty for synthetic ones, who have a split
    warnings: tuple[str, ...] = ()  # what the reader changed or dropped, one line each


def list_photos(config: MakeupConfig) -> list[str]:
    """Names of the faces to choose from, in order: paths relative to FACES, or embedded/<split>-<number>.

    Raises:
        ImageError: a folder without photos.
    """
    if config.embedded:
        number = -(-(config.count or EMBEDDED_COUNT) // config.looks_per_face)
        test = min(max(round(number * config.test_share), int(number > 1 and config.test_share > 0)), number)
        return [f"embedded/train-{i:06d}" for i in range(number - test)] + [f"embedded/held_out-{i:06d}" for i in range(test)]
    photos: list[str] = []
    for folder, inner, _ in os.walk(config.faces):
        inner[:] = sorted(
            name for name in inner if not name.startswith(".") and Path(folder, name).resolve() != config.output_dir.resolve()
        )
        photos += [photo.relative_to(config.faces).as_posix() for photo in list_images(folder)]
    if not photos:
        raise ImageError(f"{config.faces}: no photos in this folder or below it; give one that holds some")
    return sorted(photos)


def split_of_person(name: str) -> str | None:
    """The split that a synthetic person was made for; None for photos."""
    return name.removeprefix("embedded/").split("-")[0] if name.startswith("embedded/") else None


def open_face(config: MakeupConfig, name: str) -> BareFace:
    """Read or make one face of `list_photos`; ImageError for a photo that cannot be read, FaceError for no face to be trusted."""
    if config.embedded:
        number = int.from_bytes(sha256(f"{config.seed} {name}".encode()).digest()[:7])
        person = make_person(split_of_person(name) or "train", torch.Generator().manual_seed(number), size=config.size)
        return BareFace(person.clean, person.mesh, sha256(person.clean.numpy().tobytes()).hexdigest(), [])
    path = config.faces / name
    if not path.resolve().is_relative_to(config.faces.resolve()):
        raise ImageError(f"{path}: leads out of {config.faces}; copy the photo into it")
    image = read_image(path)
    face = find_face(image.pixels, path, config.min_face)
    pixels, points = image.pixels, face.mesh
    if config.crop:
        aligned = align_face(image.pixels, face.mesh, config.size)
        pixels, points = aligned.pixels, aligned.to_crop(face.mesh)
    digest = sha256(path.read_bytes()).hexdigest()
    return BareFace(pixels, points[:, :2], digest, face.embedding.tolist(), image.warnings)


def build_makeup_pairs(config: MakeupConfig) -> int:
    """Build the set, or what is missing of it; returns the exit code."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    names = list_photos(config)
    fixed = {"count"} if config.embedded else set()  # the split of the embedded people depends on their count
    out, options = config.output_dir, config_to_dict(config)
    maker = Maker("make-preferences makeup", "looks_per_face", "a set made", may_change(MakeupConfig) - fixed)
    with start_or_go_on(out, options, maker, command=sys.argv, seed=config.seed, overwrite=config.overwrite) as run:
        done = _read_journal(run.path / "faces.jsonl", config.looks_per_face)
        if done:
            console.print(f"{run.path}: {len(done)} photos are done already, going on")
            write_lines(run.path / "faces.jsonl", done.values())  # without a line that a killed process left unfinished
        records = _make_all(config, run.path, names, done, console)
        if isinstance(records, int):
            return records
        train, test = _finish(config, run.path, records, console)
        run.log(len(records), photos=len(records), set_aside=sum("reason" in record for record in records), train=train, test=test)
    return 0


def _make_all(config: MakeupConfig, folder: Path, names: Sequence[str], done: dict[str, Row], console: Console) -> list[Row] | int:
    """One record a photo, old or new, until there are enough pictures; the exit code if interrupted."""
    records: list[Row] = []
    made = bad = 0
    wanted = config.count or len(names) * config.looks_per_face
    with Interruptible() as interrupt, progress_bar(console) as bar:
        progress = bar.add_task("makeup", total=wanted)
        for name in names:
            record = done.get(name)
            if record is None:
                record = _make_pairs(config, folder, name)
                if "rows" in record:  # before the first of them nothing is written
                    append_line(folder / "faces.jsonl", record)
            records.append(record)
            made += len(record.get("rows", ()))
            bad += "reason" in record
            bar.update(progress, completed=min(made, wanted))
            if bad > config.max_unusable * len(records) and len(records) >= ENOUGH:
                if made:
                    write_lines(folder / "quarantine.jsonl", (one for one in records if "reason" in one))
                raise DataError(
                    f"{config.faces}: {bad} of the first {len(records)} photos have no usable face (the last: {record.get('reason')}): "
                    f"more than --max-unusable {config.max_unusable}; give other photos, or 1 to look at all of them"
                )
            if interrupt.requested:
                console.print(f"interrupted: {len(records)} photos are done, the same command goes on from there")
                return interrupt.exit_code
            if made >= wanted:
                break
    return records


def _make_pairs(config: MakeupConfig, folder: Path, name: str) -> Row:
    """Render one photo's looks and write the pictures; a photo that cannot be used gives its reason instead."""
    try:
        face = open_face(config, name)
    except (ImageError, FaceError) as error:
        return {"photo": name, "reason": str(error)}
    stem = f"{''.join(c if c.isalnum() or c in '-_' else '_' for c in Path(name).stem)[:60]}-{sha256(name.encode()).hexdigest()[:8]}"
    bare = f"images/{stem}_bare.{config.image_format}"
    (folder / "images").mkdir(exist_ok=True)
    write_image(folder / bare, face.pixels)
    split = split_of_person(name)
    rows: list[Row] = []
    draw = draw_lips if config.lips_only else partial(draw_look, bare=BARE if config.bare_share is None else config.bare_share)
    for number in range(config.looks_per_face):
        rng = random.Random(sha256(f"{config.seed} {name} {number}".encode()).digest())
        look = draw(rng, wide=config.wide_colors, split=split)
        image = f"images/{stem}_look{number}.{config.image_format}" if look else bare
        if look:
            with torch.no_grad():
                write_image(folder / image, render_makeup(face.pixels, face.mesh, look))
        row: Row = {"image": image, "bare_image": bare, "solution": look}
        row["prompt"] = makeup_prompts.LIPS if config.lips_only else makeup_prompts.MAKEUP
        row["parameters"] = [{key: getattr(SHAPES[item["shape"]], key) for key in PARAMETERS} for item in look]
        row |= {"synthetic_makeup": bool(look), "synthetic_face": config.embedded, "source_photo": name, "source_sha256": face.digest}
        rows.append(row)
    notes = {"notes": list(face.warnings)} if face.warnings else {}
    return {"photo": name, "identity": face.identity, "rows": rows, **notes}


def _finish(config: MakeupConfig, folder: Path, records: list[Row], console: Console) -> tuple[int, int]:
    """Write the rows, the quarantine and the contact sheet; returns the numbers of train and test rows."""
    good = [record for record in records if "rows" in record]
    bad = [record for record in records if "reason" in record]
    if not good:
        raise DataError(f"{config.faces}: none of {len(bad)} photos has a usable face, the first: {bad[0]['reason']}")
    write_lines(folder / "quarantine.jsonl", bad)
    test = _test_photos(config, good)
    left = config.count or len(good) * config.looks_per_face
    rows: dict[str, list[Row]] = {"train": [], "test": []}
    for record in good:
        kept = record["rows"][:left]
        left -= len(kept)
        rows["test" if record["photo"] in test else "train"] += kept
    for split, lines in rows.items():
        write_lines(folder / f"{split}.jsonl", lines)
    _write_sheet(folder, good)
    console.print(f"{folder}: {len(rows['train'])} rows in train.jsonl, {len(rows['test'])} in test.jsonl, of {len(good)} photos")
    if bad:
        console.print(f"{len(bad)} photos set aside, see {folder / 'quarantine.jsonl'}; the first: {bad[0]['reason']}")
    if not rows["test"] and config.test_share:
        console.print("test.jsonl is empty: all photos show one person")
    return len(rows["train"]), len(rows["test"])


def _test_photos(config: MakeupConfig, records: Sequence[Row]) -> set[str]:
    """Photos for test.jsonl: of people who are in no other, by the identity net; the embedded people have a split of their own."""
    if config.embedded:
        return {record["photo"] for record in records if split_of_person(record["photo"]) == "held_out"}
    people = [str(person) for person in cluster_identities(torch.tensor([record["identity"] for record in records]))]
    split = split_identities(people, shares=(1 - config.test_share, 0.0, config.test_share), seed=config.seed)
    return {record["photo"] for record, person in zip(records, people, strict=True) if split[person] == "held_out"}


def _read_journal(path: Path, looks: int) -> dict[str, Row]:
    """Photos that were done before, whose pictures are all there, and of whom it is known who is shown."""
    done: dict[str, Row] = {}
    for record in read_json_lines(path, dict).rows if path.is_file() else ():
        rows = record.get("rows", ()) if "identity" in record else ()
        if len(rows) == looks and all((path.parent / row[key]).is_file() for row in rows for key in ("image", "bare_image")):
            done[record["photo"]] = record
    return done


def _write_sheet(folder: Path, records: Sequence[Row]) -> None:
    """Faces in rows: bare, then its looks."""
    faces: list[Tensor] = []
    for record in records[:SHEET_FACES]:
        cells = []
        for name in (record["rows"][0]["bare_image"], *(row["image"] for row in record["rows"][:SHEET_LOOKS])):
            pixels = read_image(folder / name).pixels
            scale = SHEET_CELL / max(pixels.shape)
            small = resize(pixels, (max(round(pixels.shape[1] * scale), 1), max(round(pixels.shape[2] * scale), 1)))
            cells.append(pad(small, (0, SHEET_CELL - small.shape[2], 0, SHEET_CELL - small.shape[1]), value=1.0))
        faces.append(torch.cat(cells, 2))
    half = -(-len(faces) // 2)
    faces += [torch.ones_like(faces[0])] * (len(faces) % 2 if len(faces) > 1 else 0)
    columns = [torch.cat(part, 1) for part in (faces[:half], faces[half:]) if part]
    write_image(folder / "contact_sheet.png", torch.cat(columns, 2))
