"""The photos that pairs are made of: the embedded people, or a folder of a user's own, aligned, named and dealt out to splits."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from portraitkit.errors import DataError, UserError
from portraitkit.faces.align import align_face
from portraitkit.faces.regions import region_masks
from portraitkit.files.jsonl import Rejected, append_line, read_json_lines
from portraitkit.pictures.images import list_images, read_image
from portraitkit.runs.shard_files import Growing
from portraitkit.runs.shards import Shard
from preference_data.generators.base import Subject
from preference_data.pair_set import METADATA, check_inside
from preference_data.people.blemishes import paint_blemishes
from preference_data.people.photo_face import fit_retouch, photo_face
from preference_data.people.synthetic import Case, make_case
from preference_data.people.synthetic_pairs import SPOTS, identity_of
from preference_data.schema import CHOICES, SPLITS
from preference_data.split import cluster_identities, identity_name, join_names, split_identities

SEEDS = {"train": 0, "validation": 10_000_000, "held_out": 20_000_000}
ENTRY = {"file", "embedding", "error"}
PHOTO_COLUMNS = ("file_name", "anchor_file_name", "split", "identity", "consent", "licence", "source", *CHOICES)


@dataclass(frozen=True)
class PhotoRow:
    """One photo to be used.

    Attributes:
        id: unique, usable in file names.
        split: where it goes.
        identity: who it is.
        facts: consent, licence, source and demographics, as `Pair` has them.
        file: of the photo; None for the embedded people.
        anchor: of its preferred retouch, where there is one.
        seed: of the embedded case, or of the blemishes painted onto the photo.
        line: of the folder's `metadata.jsonl`, or position in the folder from 1.
    """

    id: str
    split: str
    identity: str
    facts: dict[str, Any]
    file: Path | None
    anchor: Path | None
    seed: int
    line: int = 0


def embedded_rows(count: int, shares: tuple[float, ...], seed: int) -> list[PhotoRow]:
    """The first `count` embedded people of a seed, every split with its share (at least one each)."""
    facts = {"source": "embedded", "licence": "public domain (NASA, US Navy), morphed", "consent": "public portraits of office holders"}
    sizes = {split: max(1, round(share * count)) if share else 0 for split, share in zip(SPLITS, shares, strict=True)}
    sizes["train"] = max(0, count - sizes["validation"] - sizes["held_out"])
    places = [(split, index) for split, size in sizes.items() for index in range(size)]
    return [
        PhotoRow(f"person-{number:05d}", split, "", facts, None, None, SEEDS[split] + seed * 100_003 + index, number + 1)
        for number, (split, index) in enumerate(places)
    ]


def photo_names(folder: Path) -> tuple[str, ...]:
    """The photos of a folder as `folder_rows` takes them, relative to it; none of them is opened.

    Raises:
        DataError: no such folder, or nothing in it.
    """
    return tuple(row["file_name"] for row in _listed(folder)[0])


def folder_rows(
    folder: Path, *, shares: tuple[float, ...], seed: int, cache: Path, facts: dict[str, Any], shard: Shard | None = None
) -> tuple[list[PhotoRow], list[Rejected]]:
    """The photos of a folder, with who is in them and in which split they go.

    `metadata.jsonl`, where there is one, names the photos and what is known of them (`PHOTO_COLUMNS`); else every picture in the folder is
    taken. People are told apart by the identity net unless `identity` is given, splits are dealt out by person unless `split` is given.
    Photos without an identity take that of the photos which the net takes for the same person. Two given identities which it takes for one
    person are both kept, and go into the same split.

    Args:
        folder: of the photos.
        shares: of train, validation and held_out.
        seed: of the deal.
        cache: file in which embeddings are kept, so that a second run does not compute them again.
        facts: consent, licence and source of photos that do not say.
        shard: of this process; the processes make the embeddings together, and each has all of them in the end.

    Returns:
        Good rows, and the photos that cannot be used with the reason (line number, or position in the folder from 1).

    Raises:
        DataError: no photos, or one person given two splits.
    """
    rows, lines, rejected = _listed(folder)
    kept, vectors = [], []
    known = _embedded(folder, [row["file_name"] for row in rows], cache, shard)
    for row, line in zip(rows, lines, strict=True):
        name = row["file_name"]
        entry = known[name]
        if entry["error"] is not None:
            rejected.append(Rejected(line, entry["error"], name))
            continue
        kept.append((row, line))
        vectors.append(entry["embedding"])
    if not kept:
        first = f"; the first: {rejected[0].reason}" if rejected else ""
        raise DataError(f"{folder}: no photo can be used ({len(rejected)} were refused){first}")
    names, persons = _identities([row for row, _ in kept], torch.tensor(vectors))
    splits = _splits([row for row, _ in kept], names, persons, shares, seed)
    made = []
    for index, ((row, line), name) in enumerate(zip(kept, names, strict=True)):
        told = facts | {key: row[key] for key in ("consent", "licence", "source", *CHOICES) if key in row}
        photo, anchor = folder / row["file_name"], folder / row["anchor_file_name"] if row.get("anchor_file_name") else None
        # Pictures are numbered: "test.jpg" would mean a split to datasets.
        told["source"] = row.get("source") or f"{facts['source']}/{row['file_name']}"
        made.append(PhotoRow(f"photo-{line:05d}", splits[name], name, told, photo, anchor, seed * 100_003 + index, line))
    return made, rejected


def open_subject(row: PhotoRow, size: int) -> tuple[Subject, str]:
    """The aligned photo and who it is.

    Raises:
        ImageError: photo or anchor cannot be read.
        FaceError: no usable face.
        DataError: the anchor shows another frame, another person, or its face elsewhere.
    """
    if row.file is None:
        case = make_case(row.split, row.seed, size=size, count=SPOTS)
        return Subject(row.id, case, case.clean, row.split, synthetic=True), identity_of(case)
    image = read_image(row.file).pixels
    face = photo_face(image, row.file)
    aligned = align_face(image, face.mesh, size)
    points = aligned.to_crop(face.mesh)[:, :2]
    skin = region_masks(points, size, size)["skin"]
    if row.anchor is None:
        source, opacity = paint_blemishes(aligned.pixels, skin, torch.Generator().manual_seed(row.seed), count=SPOTS)
        case = Case(source, aligned.pixels, opacity, skin, points, float("nan"))
        return Subject(row.id, case, None, row.split, True, row.file, aligned.matrix, face), row.identity
    anchor = fit_retouch(read_image(row.anchor).pixels, face, row.anchor, "anchor")
    clean = align_face(anchor, face.mesh, size).pixels
    opacity = ((aligned.pixels - clean).abs().amax(0, keepdim=True) * 8).clamp(0, 1) * skin
    case = Case(aligned.pixels, clean, torch.where(opacity > 0.05, opacity, 0.0), skin, points, float("nan"))
    return Subject(row.id, case, clean, row.split, False, row.file, aligned.matrix, face), row.identity


def without_paint(subject: Subject) -> Subject:
    """The subject as photographed: real retouchers get the real photo, not one with painted blemishes."""
    if subject.path is None or subject.label is not None:
        return subject
    case = replace(subject.case, source=subject.case.clean, opacity=torch.zeros_like(subject.case.opacity))
    return replace(subject, case=case, synthetic=False)


def _listed(folder: Path) -> tuple[list[dict[str, Any]], list[int], list[Rejected]]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give a folder of photos, or embedded")
    if not (folder / METADATA).is_file():
        rows = [{"file_name": path.name} for path in list_images(folder)]
        if not rows:
            raise DataError(f"{folder}: holds no photos (and no {METADATA})")
        return rows, list(range(1, len(rows) + 1)), []
    root, seen = folder.resolve(), set()

    def read(row: dict[str, Any]) -> dict[str, Any]:
        read_photo_row(row)
        for key in ("file_name", "anchor_file_name"):
            if row.get(key) is not None:
                check_inside(root, row[key], key)
        if row["file_name"] in seen:
            raise DataError(f"file_name {row['file_name']!r}: named by an earlier row")
        seen.add(row["file_name"])
        return row

    found = read_json_lines(folder / METADATA, read)
    return found.rows, found.lines, found.rejected


def read_photo_row(row: dict[str, Any]) -> dict[str, Any]:
    """Check a row of a photo folder's `metadata.jsonl`; columns that are not ours are let be.

    Raises:
        DataError: a column of ours has an impossible value.
    """
    if not isinstance(row.get("file_name"), str) or not row["file_name"]:
        raise DataError("file_name: missing or no text")
    for key in PHOTO_COLUMNS:
        if row.get(key) is not None and not isinstance(row[key], str):
            raise DataError(f"{key} {row[key]!r}: must be text")
    for key, choices in (*CHOICES.items(), ("split", SPLITS)):
        if row.get(key) is not None and row[key] not in choices:
            raise DataError(f"{key} {row[key]!r}: must be one of {', '.join(choices)}")
    return row


def _embedded(folder: Path, names: list[str], cache: Path, shard: Shard | None) -> dict[str, dict[str, Any]]:
    """The embedding of each photo, or why there is none; those that neither an earlier run nor another process has made are made here."""
    together = Growing(cache.parent, "faces")
    known = {entry["file"]: entry for entry in _cached(cache)}
    for name in names if shard is None else shard.order(names):
        known |= {entry["file"]: entry for entry in together.new() if entry.keys() >= ENTRY}
        if name not in known:
            known[name] = {"file": name} | _embed(folder / name)
            append_line(cache if shard is None else together.own(shard), known[name])
    return known


def _embed(path: Path) -> dict[str, Any]:
    try:
        face = photo_face(read_image(path).pixels, path)
    except UserError as error:
        return {"embedding": None, "error": str(error)}
    return {"embedding": [round(x, 5) for x in face.embedding.tolist()], "error": None}


def _cached(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [row for row in read_json_lines(path, dict).rows if row.keys() >= ENTRY]


def _identities(rows: list[dict[str, Any]], vectors: torch.Tensor) -> tuple[list[str], dict[str, str]]:
    """Who is in each photo, and of each name the one that stands for all whom the net takes for the same person.

    A photo without a name has that of the nearest named one of its cluster; a cluster without any is named by its embeddings.
    """
    labels = cluster_identities(vectors)
    clusters: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        clusters.setdefault(label, []).append(index)
    names = [row.get("identity") or "" for row in rows]
    for cluster in clusters.values():
        named = [index for index in cluster if rows[index].get("identity")]
        fallback = "" if named else identity_name(vectors[cluster])
        for index in cluster:
            if named and not names[index]:
                distance = (vectors[named] - vectors[index]).norm(dim=1)
                names[index] = names[named[int(distance.argmin())]]
            names[index] = names[index] or fallback
    return names, join_names(names, labels)


def _splits(rows: list[dict[str, Any]], names: list[str], persons: dict[str, str], shares: tuple[float, ...], seed: int) -> dict[str, str]:
    given: dict[str, str] = {}
    for row, name in zip(rows, names, strict=True):
        split = row.get("split")
        if split is not None and given.setdefault(name, split) != split:
            raise DataError(f"{row['file_name']}: split {split}, but the same person ({name}) is in {given[name]} too; one split a person")
    known = {persons[name]: split for name, split in reversed(given.items())}
    known = split_identities([persons[name] for name in names if persons[name] not in known], shares=shares, seed=seed) | known
    return {name: given.get(name, known[persons[name]]) for name in names}


def describe_rows(rows: list[PhotoRow]) -> str:
    """How many photos and people each split has, in words."""
    parts = []
    for split in SPLITS:
        own = [row for row in rows if row.split == split]
        people = {row.identity or row.id for row in own}
        parts.append(f"{split} {len(own)} photos of {len(people)} people")
    return ", ".join(parts)


def fingerprint(config: dict[str, Any]) -> str:
    """A configuration as one comparable line."""
    return json.dumps(config, sort_keys=True)
