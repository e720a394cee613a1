"""A folder of portraits: which photos it holds, who is in them, in which split they go, and the aligned face with its anchor.

`metadata.jsonl`, where there is one, names the photos and what is known of them (`PHOTO_COLUMNS`); else every picture in the folder is
taken. An anchor is a preferred retouch of a photo.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from portraitkit.errors import DataError, FaceError, UserError
from portraitkit.faces.align import align_face
from portraitkit.faces.identity import SAME_PERSON, identity_embedding
from portraitkit.faces.mesh import require_mesh
from portraitkit.files.jsonl import Rejected, append_line, read_json_lines
from portraitkit.pictures import list_images
from portraitkit.pictures.images import read_image, resize
from portraitkit.runs.shards import Growing, Shard
from preference_data.pair_set import METADATA, check_inside
from preference_data.schema import CHOICES, SPLITS
from preference_data.split import cluster_identities, identity_name, join_names, split_identities

PHOTO_COLUMNS = ("file_name", "anchor_file_name", "split", "identity", "consent", "licence", "source", *CHOICES)
CACHE_COLUMNS = {"file", "embedding", "error"}
MIN_FACE = 48
"""Smallest face in pixels."""
MAX_ASPECT_GAP = 0.01
MAX_MISFIT = 0.06
"""Largest mean distance of landmarks, in distances between the outer eye corners."""
EYE_CORNERS = (33, 263)


@dataclass(frozen=True)
class PhotoRow:
    """One photo to be used.

    Attributes:
        id: unique, usable in file names.
        split: "train", "validation" or "held_out".
        identity: who it is.
        facts: consent, licence, source and demographics, as `Pair` has them.
        file: of the photo; None for the embedded people.
        anchor: file of its preferred retouch, where there is one.
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


@dataclass(frozen=True)
class PhotoFace:
    """The face of a photo.

    Attributes:
        frame: height and width of the photo.
        mesh: landmarks in pixels of the photo.
        embedding: of the identity net.
    """

    frame: tuple[int, int]
    mesh: Float[Tensor, "468 3"]
    embedding: Float[Tensor, " dim"]


@dataclass(frozen=True, eq=False)
class AlignedPhoto:
    """A photo's face cut out, and its anchor cut by the same alignment.

    Attributes:
        pixels: RGB in [0, 1].
        mesh: landmarks (x, y) in pixels of the crop.
        anchor: RGB in [0, 1]; None where the photo has none.
        matrix: photo -> crop in pixels, see `portraitkit.faces.align`.
        face: in the whole photo.
    """

    pixels: Float[Tensor, "3 size size"]
    mesh: Float[Tensor, "468 2"]
    anchor: Float[Tensor, "3 size size"] | None
    matrix: Float[Tensor, "2 3"]
    face: PhotoFace


def photo_names(folder: Path) -> tuple[str, ...]:
    """The photos of a folder as `folder_rows` takes them, relative to it; none of them is opened.

    Raises:
        DataError: no such folder, or nothing in it.
    """
    return tuple(row["file_name"] for row in _list_photos(folder)[0])


def folder_rows(
    folder: Path, *, shares: tuple[float, ...], seed: int, cache: Path, facts: dict[str, Any], shard: Shard | None = None
) -> tuple[list[PhotoRow], list[Rejected]]:
    """The photos of a folder, with who is in them and in which split they go.

    The identity net says who is who unless a row has an `identity`; splits are assigned by person unless a row has a `split`. A photo
    without an identity gets that of the nearest photo of the same person. Two names for one person are both kept, and go into the same
    split.

    Args:
        folder: of the photos.
        shares: of train, validation and held_out.
        seed: of the assignment.
        cache: file in which embeddings are kept, so that a second run does not compute them again.
        facts: consent, licence and source of photos that do not say.
        shard: of this process; the processes make the embeddings together, and each has all of them in the end.

    Returns:
        Good rows, and the photos that cannot be used with the reason (line number, or position in the folder from 1).

    Raises:
        DataError: no photos, or one person given two splits.
    """
    listed, lines, rejected = _list_photos(folder)
    embedded = _embed_photos(folder, [row["file_name"] for row in listed], cache, shard)
    rows, row_lines, vectors = [], [], []
    for row, line in zip(listed, lines, strict=True):
        entry = embedded[row["file_name"]]
        if entry["error"] is not None:
            rejected.append(Rejected(line, entry["error"], row["file_name"]))
            continue
        rows.append(row)
        row_lines.append(line)
        vectors.append(entry["embedding"])
    if not rows:
        first = f"; the first: {rejected[0].reason}" if rejected else ""
        raise DataError(f"{folder}: no photo can be used ({len(rejected)} were refused){first}")
    names, persons = _name_people(rows, torch.tensor(vectors))
    splits = _deal_splits(rows, names, persons, shares, seed)
    photos = []
    for index, (row, line, name) in enumerate(zip(rows, row_lines, names, strict=True)):
        row_facts = facts | {key: row[key] for key in ("consent", "licence", *CHOICES) if key in row}
        row_facts["source"] = row.get("source") or f"{facts['source']}/{row['file_name']}"
        photo, anchor = folder / row["file_name"], folder / row["anchor_file_name"] if row.get("anchor_file_name") else None
        # Pictures are numbered: "test.jpg" would mean a split to datasets.
        photos.append(PhotoRow(f"photo-{line:05d}", splits[name], name, row_facts, photo, anchor, seed * 100_003 + index, line))
    return photos, rejected


def describe_rows(rows: list[PhotoRow]) -> str:
    """How many photos and people each split has, as one line of text."""
    counts = []
    for split in SPLITS:
        chosen = [row for row in rows if row.split == split]
        people = {row.identity or row.id for row in chosen}
        counts.append(f"{split} {len(chosen)} photos of {len(people)} people")
    return ", ".join(counts)


def read_photo_row(row: dict[str, Any], root: Path) -> dict[str, Any]:
    """Check a row of a photo folder's `metadata.jsonl`; other columns are ignored.

    Args:
        row: as read.
        root: the folder, resolved.

    Raises:
        DataError: a column of ours has an impossible value, or a file is missing or outside the folder.
    """
    if not isinstance(row.get("file_name"), str) or not row["file_name"]:
        raise DataError("file_name: missing or no text")
    for key in PHOTO_COLUMNS:
        if row.get(key) is not None and not isinstance(row[key], str):
            raise DataError(f"{key} {row[key]!r}: must be text")
    for key, choices in (*CHOICES.items(), ("split", SPLITS)):
        if row.get(key) is not None and row[key] not in choices:
            raise DataError(f"{key} {row[key]!r}: must be one of {', '.join(choices)}")
    for key in ("file_name", "anchor_file_name"):
        if row.get(key) is not None:
            check_inside(root, row[key], key)
    return row


def open_photo(photo: Path, anchor: Path | None, size: int) -> AlignedPhoto:
    """The aligned face of a photo, `size` pixels wide and high, and of its anchor.

    Raises:
        ImageError: photo or anchor cannot be read.
        FaceError: no usable face.
        DataError: the anchor shows another frame, another person, or its face elsewhere.
    """
    image = read_image(photo).pixels
    face = find_face(image, photo)
    aligned = align_face(image, face.mesh, size)
    retouch = None
    if anchor is not None:
        retouch = align_face(fit_retouch(read_image(anchor).pixels, face, anchor, "anchor"), face.mesh, size).pixels
    return AlignedPhoto(aligned.pixels, aligned.to_crop(face.mesh)[:, :2], retouch, aligned.matrix, face)


def find_face(pixels: Float[Tensor, "3 h w"], path: Path) -> PhotoFace:
    """The face of a picture, RGB in [0, 1].

    Raises:
        FaceError: no usable face.
    """
    _, mesh = require_mesh(pixels, path, min_size=MIN_FACE)
    with torch.no_grad():
        embedding = identity_embedding(pixels[None], mesh[None, :, :2])[0]
    return PhotoFace((pixels.shape[1], pixels.shape[2]), mesh, embedding)


def fit_retouch(pixels: Float[Tensor, "3 h w"], photo: PhotoFace, path: Path, what: str) -> Float[Tensor, "3 h2 w2"]:
    """A retouch brought to its photo's size, once it is known to be one.

    Args:
        pixels: of the retouch, RGB in [0, 1].
        photo: the face that it must show.
        path: of the retouch, for the message.
        what: it is, "anchor" or "retouch", for the message.

    Raises:
        DataError: another frame, no usable face, another person by the identity net, or a face in another place.
    """
    height, width = photo.frame
    if abs((pixels.shape[1] / pixels.shape[2]) / (height / width) - 1) > MAX_ASPECT_GAP:
        raise DataError(
            f"{what} {path}: {pixels.shape[2]}x{pixels.shape[1]} px has another aspect ratio than its photo ({width}x{height}); "
            "it must show the same frame"
        )
    pixels = resize(pixels, photo.frame)
    try:
        face = find_face(pixels, path)
    except FaceError as error:
        raise DataError(f"{what} {error}; it must show the photo's face") from error
    distance = float((face.embedding - photo.embedding).norm())
    if distance > SAME_PERSON:
        raise DataError(f"{what} {path}: shows another person than its photo (identity distance {distance:.2f}, at most {SAME_PERSON:g})")
    span = (photo.mesh[EYE_CORNERS[0], :2] - photo.mesh[EYE_CORNERS[1], :2]).norm()
    misfit = float((face.mesh - photo.mesh)[:, :2].norm(dim=1).mean() / span)
    if misfit > MAX_MISFIT:
        raise DataError(
            f"{what} {path}: its face is off by {misfit:.2f} of the eyes' distance (at most {MAX_MISFIT:g}); align it to its photo"
        )
    return pixels


def _list_photos(folder: Path) -> tuple[list[dict[str, Any]], list[int], list[Rejected]]:
    """Rows, their lines, and the rows that cannot be used."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give a folder of photos, or embedded")
    if not (folder / METADATA).is_file():
        rows = [{"file_name": path.name} for path in list_images(folder)]
        if not rows:
            raise DataError(f"{folder}: holds no photos (and no {METADATA})")
        return rows, list(range(1, len(rows) + 1)), []
    root, seen = folder.resolve(), set()

    def read(row: dict[str, Any]) -> dict[str, Any]:
        read_photo_row(row, root)
        if row["file_name"] in seen:
            raise DataError(f"file_name {row['file_name']!r}: named by an earlier row")
        seen.add(row["file_name"])
        return row

    row_set = read_json_lines(folder / METADATA, read)
    return row_set.rows, row_set.lines, row_set.rejected


def _embed_photos(folder: Path, names: list[str], cache: Path, shard: Shard | None) -> dict[str, dict[str, Any]]:
    """The embedding of each photo, or why there is none; those that neither an earlier run nor another process has made are made here."""
    shared = Growing(cache.parent, "faces")
    rows = read_json_lines(cache, dict).rows if cache.is_file() else []
    entries = {row["file"]: row for row in rows if row.keys() >= CACHE_COLUMNS}
    for name in names if shard is None else shard.order(names):
        entries |= {entry["file"]: entry for entry in shared.new() if entry.keys() >= CACHE_COLUMNS}
        if name not in entries:
            entries[name] = {"file": name} | _embed(folder / name)
            append_line(cache if shard is None else shared.own(shard), entries[name])
    return entries


def _embed(path: Path) -> dict[str, Any]:
    try:
        face = find_face(read_image(path).pixels, path)
    except UserError as error:
        return {"embedding": None, "error": str(error)}
    return {"embedding": [round(x, 5) for x in face.embedding.tolist()], "error": None}


def _name_people(rows: list[dict[str, Any]], vectors: Float[Tensor, "n dim"]) -> tuple[list[str], dict[str, str]]:
    """The name of the person in each photo; and for each name the first of the names that the net takes for the same person.

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


def _deal_splits(
    rows: list[dict[str, Any]], names: list[str], persons: dict[str, str], shares: tuple[float, ...], seed: int
) -> dict[str, str]:
    """The split of each name: the one its rows say, else that of the person, else one assigned by `shares`."""
    named_splits: dict[str, str] = {}
    for row, name in zip(rows, names, strict=True):
        split = row.get("split")
        if split is not None and named_splits.setdefault(name, split) != split:
            raise DataError(
                f"{row['file_name']}: split {split}, but the same person ({name}) is in {named_splits[name]} too; one split a person"
            )
    person_splits = {persons[name]: split for name, split in reversed(named_splits.items())}
    open_persons = [persons[name] for name in names if persons[name] not in person_splits]
    person_splits |= split_identities(open_persons, shares=shares, seed=seed)
    return {name: named_splits.get(name, person_splits[persons[name]]) for name in names}
