"""A folder of portraits: which photos it holds, who is in them, in which split they go, and the aligned face with its anchor.

An anchor is a preferred retouch of a photo. Each photo is looked at once, with its anchor; what was found is kept in a cache.
"""

import hashlib
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from portraitkit.errors import ConfigError, DataError, FaceError, UserError
from portraitkit.faces.align import align_face
from portraitkit.faces.identity import SAME_PERSON, identity_embedding
from portraitkit.faces.mesh import require_mesh
from portraitkit.files.jsonl import Rejected
from portraitkit.pictures.images import read_image, resize
from portraitkit.report.page import plural
from portraitkit.runs.shards import Growing
from preference_data.pair_set import list_photos
from preference_data.schema import CHOICES, SPLITS

CACHE_COLUMNS = {"file", "anchor", "stamp", "face", "error"}
MIN_FACE = 48
"""Smallest face in pixels."""
MAX_ASPECT_GAP = 0.01
MAX_MISFIT = 0.06
"""Largest mean distance of landmarks, in distances between the outer eye corners."""
MAX_ZOOM = 0.03
"""Largest difference of 1 to how much larger a face is than its photo's: of that the eye's corners alone tell too little."""
EYE_CORNERS = (33, 263)
CHUNK = 1024  # Faces whose distances to all others are held at once
SHARES = (0.8, 0.1, 0.1)  # Of train, validation and held_out
LINKED = 0.45
"""Faces nearer than this are linked. At dlib's own .6 for one person, chains of look-alikes join people: of 584 people in 640 portraits
174 groups were left (one of 406 photos); at .45 all 584, and both photos of a person together."""


@dataclass(frozen=True)
class PhotoFace:
    """The face of a photo."""

    frame: tuple[int, int]  # height and width of the photo
    mesh: Float[Tensor, "468 3"]  # landmarks in pixels of the photo
    embedding: Float[Tensor, " dim"]  # of the identity net

    def pack(self) -> list[Any]:
        """JSON-able and exact, for the cache."""
        return [*self.frame, *(b64encode(values.float().numpy().tobytes()).decode() for values in (self.mesh, self.embedding))]

    @classmethod
    def unpack(cls, packed: list[Any]) -> Self:
        """The face that `pack` made this of."""
        mesh, embedding = (torch.frombuffer(bytearray(b64decode(text)), dtype=torch.float32) for text in packed[2:])
        return cls((packed[0], packed[1]), mesh.view(468, 3), embedding)


@dataclass(frozen=True)
class PhotoRow:
    """One photo to be used."""

    id: str  # unique, usable in file names
    split: str  # "train", "validation" or "held_out"
    identity: str  # who it is
    facts: dict[str, Any]  # consent, licence, source and demographics, as `Pair` has them
    file: Path | None  # of the photo; None for the embedded people
    anchor: Path | None  # file of its preferred retouch, where there is one
    seed: int  # of the embedded case, or of the blemishes painted onto the photo
    line: int = 0  # of the folder's `metadata.jsonl`, or position in the folder from 1
    face: PhotoFace | None = None  # as it was found; None for the embedded people


@dataclass(frozen=True, eq=False)
class AlignedPhoto:
    """A photo's face cut out, and its anchor cut by the same alignment. Pixels are RGB in [0, 1]."""

    pixels: Float[Tensor, "3 size size"]
    mesh: Float[Tensor, "468 2"]  # landmarks (x, y) in pixels of the crop
    anchor: Float[Tensor, "3 size size"] | None  # None where the photo has none
    matrix: Float[Tensor, "2 3"]  # photo -> crop in pixels, see `portraitkit.faces.align`
    face: PhotoFace  # in the whole photo


def folder_rows(
    folder: Path,
    *,
    shares: tuple[float, ...] = SHARES,
    seed: int = 0,
    cache: Growing | None = None,
    facts: dict[str, Any] | None = None,
    track: Callable[[list[str]], Iterable[str]] = iter,
) -> tuple[list[PhotoRow], list[Rejected]]:
    """The photos of a folder, with who is in them and in which split they go.

    The identity net says who is who unless a row has an `identity`; splits are assigned by person unless a row has a `split`. A photo
    without an identity gets that of the nearest photo of the same person. Two names for one person are both kept, and go into the same
    split.

    Faces are kept in the `cache`, so that a second run does not look for them again; a photo that has changed is looked at anew. Processes
    that share a cache look at the photos together, and each has all faces in the end. `facts` are consent, licence and source of photos
    that do not say; `track` gives the names of the photos in the order in which they are looked at, to show how far the work is.

    Returns:
        Good rows, and the photos that cannot be used with the reason (line number, or position in the folder from 1).

    Raises:
        DataError: no photos, or one person given two splits.
    """
    listed = list_photos(folder)
    entries = _look_at_photos(folder, {row["file_name"]: row.get("anchor_file_name") for row in listed.rows}, cache, track)
    looked = [(row, line, entries[row["file_name"]]) for row, line in zip(listed.rows, listed.lines, strict=True)]
    rejected = [
        *listed.rejected,
        *(Rejected(line, one["error"], row["file_name"]) for row, line, one in looked if one["error"] is not None),
    ]
    good = [(row, line, PhotoFace.unpack(one["face"])) for row, line, one in looked if one["error"] is None]
    rows = [row for row, _, _ in good]
    if not rows:
        first = f"; the first: {rejected[0].reason}" if rejected else ""
        raise DataError(f"{folder}: no photo can be used ({len(rejected)} were refused){first}")
    names, persons = _name_people(rows, torch.stack([face.embedding for _, _, face in good]))
    splits = _deal_splits(rows, names, persons, shares, seed)
    facts = {"source": folder.resolve().name} | (facts or {})
    photos = []
    for index, ((row, line, face), name) in enumerate(zip(good, names, strict=True)):
        row_facts = facts | {key: row[key] for key in ("consent", "licence", *CHOICES) if key in row}
        row_facts["source"] = row.get("source") or f"{facts['source']}/{row['file_name']}"
        photo, anchor = folder / row["file_name"], folder / row["anchor_file_name"] if row.get("anchor_file_name") else None
        # Pictures are numbered: "test.jpg" would mean a split to datasets.
        photos.append(PhotoRow(f"photo-{line:05d}", splits[name], name, row_facts, photo, anchor, seed * 100_003 + index, line, face))
    return photos, rejected


def describe_rows(rows: list[PhotoRow]) -> str:
    """How many photos and people each split has, as one line of text."""
    chosen = {split: [row.identity or row.id for row in rows if row.split == split] for split in SPLITS}
    people = {split: plural(len(set(names)), "person").replace("persons", "people") for split, names in chosen.items()}
    return ", ".join(f"{split} {plural(len(names), 'photo')} of {people[split]}" for split, names in chosen.items())


def open_photo(photo: Path, anchor: Path | None, size: int, face: PhotoFace | None = None) -> AlignedPhoto:
    """The aligned face of a photo's file, `size` pixels wide and high, and of its anchor's, where there is one. A `face` that `folder_rows`
    found is not looked for again, and its anchor is known to fit.

    Raises:
        ImageError: photo or anchor cannot be read.
        FaceError: no usable face.
        DataError: the anchor shows another frame, another person, or its face elsewhere.
    """
    image, retouch = read_image(photo).pixels, None if anchor is None else read_image(anchor).pixels
    if face is None:
        face = find_face(image, photo)
        retouch = None if retouch is None or anchor is None else fit_retouch(retouch, face, anchor, "anchor")
    aligned = align_face(image, face.mesh, size)
    if retouch is not None:
        retouch = align_face(resize(retouch, face.frame), face.mesh, size).pixels
    return AlignedPhoto(aligned.pixels, aligned.to_crop(face.mesh)[:, :2], retouch, aligned.matrix, face)


def find_face(pixels: Float[Tensor, "3 h w"], path: Path, min_size: int = MIN_FACE) -> PhotoFace:
    """The face of a picture, RGB in [0, 1], at least so many pixels large; FaceError: there is none that can be used."""
    with torch.no_grad():
        _, mesh = require_mesh(pixels, path, min_size=min_size)
        embedding = identity_embedding(pixels[None], mesh[None, :, :2])[0]
    return PhotoFace((pixels.shape[1], pixels.shape[2]), mesh, embedding)


def fit_retouch(pixels: Float[Tensor, "3 h w"], photo: PhotoFace, path: Path, what: str) -> Float[Tensor, "3 h2 w2"]:
    """A retouch, RGB in [0, 1], brought to its photo's size, once it is known to be one: to show the photo's face in its place. Messages
    call it by `path` and by `what` it is, "anchor" or "retouch".

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
        raise DataError(f"{what} {path}: shows another person than its photo (identity distance {distance:.4g}, at most {SAME_PERSON:g})")
    span = (photo.mesh[EYE_CORNERS[0], :2] - photo.mesh[EYE_CORNERS[1], :2]).norm()
    misfit = float((face.mesh - photo.mesh)[:, :2].norm(dim=1).mean() / span)
    if misfit > MAX_MISFIT:
        raise DataError(
            f"{what} {path}: its face is off by {misfit:.4g} of the eyes' distance (at most {MAX_MISFIT:g}); align it to its photo"
        )
    zoom = _spread(face.mesh) / _spread(photo.mesh)
    if abs(zoom - 1) > MAX_ZOOM:
        raise DataError(
            f"{what} {path}: its face is {zoom:.4g} times as large as its photo's ({1 - MAX_ZOOM:g} to {1 + MAX_ZOOM:g} pass); align it"
        )
    return pixels


def _spread(mesh: Float[Tensor, "468 3"]) -> float:
    """How far the landmarks lie from their middle (root mean square), in pixels."""
    return float((mesh[:, :2] - mesh[:, :2].mean(0)).square().sum(1).mean().sqrt())


def _look_at_photos(
    folder: Path, anchors: dict[str, str | None], cache: Growing | None, track: Callable[[list[str]], Iterable[str]]
) -> dict[str, dict[str, Any]]:
    """The face of each photo, or why it has none that can be used; those that neither an earlier run nor another process has looked at
    are looked at here."""
    stamps: dict[str, list[list[int]]] = {}  # what changes when a file does; nothing where there is none, which reading it will say
    for name, anchor in anchors.items():
        paths = [folder / file for file in (name, anchor) if file]
        stamps[name] = [[path.stat().st_size, path.stat().st_mtime_ns] if path.exists() else [] for path in paths]
    entries: dict[str, dict[str, Any]] = {}
    for name in track(list(anchors)):
        for row in cache.new() if cache is not None else ():
            known = row["file"] if row.keys() >= CACHE_COLUMNS else None
            if known in anchors and (row["anchor"], row["stamp"]) == (anchors[known], stamps[known]):
                entries[known] = row
        if name not in entries:
            found = _look(folder / name, folder / anchor if (anchor := anchors[name]) else None)
            entries[name] = {"file": name, "anchor": anchor, "stamp": stamps[name]} | found
            if cache is not None:
                cache.append(entries[name])
    return entries


def _look(photo: Path, anchor: Path | None) -> dict[str, Any]:
    try:
        face = find_face(read_image(photo).pixels, photo)
        if anchor is not None:
            fit_retouch(read_image(anchor).pixels, face, anchor, "anchor")
    except UserError as error:
        return {"face": None, "error": str(error)}
    return {"face": face.pack(), "error": None}


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


# ---- who is who, and splits that no person crosses: whole clusters of identity embeddings are assigned, never rows


def cluster_identities(embeddings: Float[Tensor, "n dim"], *, same_person: float = LINKED) -> list[int]:
    """Cluster numbers from 0, by single linkage: two faces nearer than `same_person` are never in two clusters.

    A chain of look-alikes may join two people. That costs variety within a split and never lets a person into two of them.
    """
    if len(embeddings) < 2:
        return [0] * len(embeddings)
    places, exact = embeddings.detach().double().cpu(), "donot_use_mm_for_euclid_dist"
    near = [  # some rows at a time: all distances of 70,000 faces would fill 40 GB
        (torch.cdist(part, places, compute_mode=exact) < same_person).nonzero() + torch.tensor([number * CHUNK, 0])
        for number, part in enumerate(places.split(CHUNK))
    ]
    one, other = torch.cat(near).T.numpy()
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(len(places), len(places)))
    return connected_components(graph, directed=False)[1].tolist()


def identity_name(embeddings: Float[Tensor, "n dim"]) -> str:
    """A name for a cluster, from its mean embedding rounded: it tells nothing about the person."""
    return f"person-{hashlib.sha256(embeddings.mean(0).mul(1e3).round().to(torch.int32).cpu().numpy().tobytes()).hexdigest()[:12]}"


def join_names(names: list[str], clusters: list[int]) -> dict[str, str]:
    """Who may be one person under several names, one a row: those that share a cluster, directly or by way of further names.

    Returns:
        Name -> the first of the names that go together with it.
    """
    places = {name: place for place, name in enumerate(sorted(set(names)))}
    edges = [places[name] for name in names], [len(places) + cluster for cluster in clusters]
    nodes = len(places) + max(clusters, default=0) + 1
    parts = connected_components(coo_array((np.ones(len(names)), edges), shape=(nodes, nodes)), directed=False)[1]
    first: dict[int, str] = {}
    return {name: first.setdefault(int(parts[place]), name) for name, place in places.items()}


def split_identities(identities: list[str], *, shares: tuple[float, ...] = SHARES, seed: int = 0) -> dict[str, str]:
    """Assign identities to the splits, largest first, each to the split that is furthest below its share of rows.

    Args:
        identities: one a row, repeated as often as the person occurs.
        shares: of train, validation and held_out; must sum to 1.
        seed: breaks ties between identities of one size.

    Returns:
        Identity -> split. Where there are at least as many identities as splits with a share, each of these gets one.

    Raises:
        ConfigError: shares that are no shares.
    """
    if len(shares) != len(SPLITS) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"shares {shares}: must be three numbers of at least 0 that sum to 1, for {', '.join(SPLITS)}")
    sizes = Counter(identities)
    key = {name: hashlib.sha256(f"{seed} {name}".encode()).hexdigest() for name in sizes}
    total, held, dealt = len(identities), dict.fromkeys(SPLITS, 0), {}
    open_splits = [split for split, share in zip(SPLITS, shares, strict=True) if share > 0]
    for name in sorted(sizes, key=lambda name: (-sizes[name], key[name])):
        missing = {
            split: share * total - held[split] + (total if len(sizes) >= len(open_splits) and not held[split] and dealt else 0)
            for split, share in zip(SPLITS, shares, strict=True)
            if share > 0
        }
        split = max(missing, key=lambda split: missing[split])
        dealt[name] = split
        held[split] += sizes[name]
    return dealt
