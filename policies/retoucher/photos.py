"""Photos to train on: the embedded synthetic portraits, or a user's folder of photos with preferred retouches as anchors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from portraitkit.errors import DataError, FaceError
from portraitkit.faces.align import align_face
from portraitkit.faces.identity import SAME_PERSON, identity_distance, identity_embedding
from portraitkit.faces.mesh import require_mesh
from portraitkit.files.jsonl import read_objects
from portraitkit.pictures.images import read_image, resize
from preference_data.people.photos import find_face
from preference_data.people.synthetic import SEEDS, make_case
from preference_data.split import cluster_identities, join_names, split_identities
from reward_models.photos import Photos

MIN_FACE = 32
MAX_MISFIT = 0.06


@dataclass(frozen=True)
class TrainingPhotos:
    """A batch of photos with their anchors.

    Attributes:
        photos: the photos and what rewards know of them.
        anchors: the preferred retouch of each photo, RGB in [0, 1]; None where the set has none.
        ids: one name a photo, for logs and errors.
        people: who is in each photo; the photo's own name where nobody said.
    """

    photos: Photos
    anchors: Float[Tensor, "n 3 h w"] | None
    ids: list[str]
    people: list[str]


@runtime_checkable
class PhotoSource(Protocol):
    """An indexed set of photos; `train` may be endless."""

    def load(self, split: str, indices: list[int]) -> TrainingPhotos:
        """The photos at `indices` of a split ("train", "validation" or "held_out"); indices beyond the end wrap around."""
        ...

    def count(self, split: str) -> int | None:
        """How many photos a split has; None where they never end."""
        ...


class SyntheticSource:
    """The embedded portraits: endless, known blemishes, the clean portrait as anchor; see `preference_data.people.synthetic`."""

    def __init__(self, size: int) -> None:
        self.size = size

    def load(self, split: str, indices: list[int]) -> TrainingPhotos:
        """See `PhotoSource.load`."""
        cases = [make_case(split, SEEDS[split] + index, size=self.size) for index in indices]
        clean = torch.stack([case.clean for case in cases])
        photos = Photos.build(
            torch.stack([case.source for case in cases]),
            torch.stack([case.mesh for case in cases]),
            opacity=torch.stack([case.opacity for case in cases]),
            clean=clean,
        )
        ids = [f"synthetic-{split}-{index}" for index in indices]
        return TrainingPhotos(photos, clean, ids, ids)

    def count(self, split: str) -> int | None:
        """None: every index is another person."""
        return None


class FolderSource:
    """A folder with `metadata.jsonl`, one row a photo: `{"file_name": ..., "anchor_file_name": ..., "split": ...}`.

    `split` is train, validation or held_out; without it photos are split by person, a tenth of them for validation and a tenth held
    out: by `identity`, or where that is missing by whom the identity net takes for one person. Faces are found and aligned; the anchor
    is cut with the photo's own alignment, and refused where it shows another person or does not fit. Where every row has an anchor,
    rewards measure blemishes against it; where not, against the skin around spots that a detector finds, and that can be hacked by
    smoothing (docs/rewards.md).

    Attributes:
        people: how many each split has; empty where every row has its split and nobody said who is in it.
    """

    def __init__(self, folder: Path, size: int, *, need_anchors: bool) -> None:
        self.folder, self.size = folder, size
        self.rows: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "held_out": []}
        numbered = _read_rows(folder)
        for number, row in numbered:
            if row.get("split", "train") not in self.rows:
                raise DataError(f"metadata.jsonl line {number}: split {row['split']!r} is unknown; use train, validation or held_out")
            for key in ("file_name", "anchor_file_name"):
                if key in row:
                    _inside(folder, row[key], number)
            if need_anchors and "anchor_file_name" not in row:
                raise DataError(
                    f"metadata.jsonl line {number}: {row['file_name']} has no anchor_file_name; DPG needs a preferred retouch of "
                    "every photo: add one or train with --no-dpg"
                )
        rows = [row for _, row in numbered]
        people = _people(folder, rows)
        for row, split in zip(rows, [row["split"] for row in rows] if people is None else _splits(rows, people), strict=True):
            self.rows[split].append(row)
        self._person = dict(zip(map(id, rows), people or [row["file_name"] for row in rows], strict=True))
        self.people = {split: len({self._person[id(row)] for row in some}) for split, some in self.rows.items()} if people else {}
        self.anchored = all("anchor_file_name" in row for rows in self.rows.values() for row in rows)
        for split, rows in self.rows.items():
            if not rows:
                raise DataError(
                    f"{folder}: no photo in split {split}; at least one is needed in each of train, validation, held_out, and a person is "
                    "in one of them alone: add people, or give every row its split"
                )

    def load(self, split: str, indices: list[int]) -> TrainingPhotos:
        """See `PhotoSource.load`.

        Raises:
            ImageError: a picture cannot be read.
            FaceError: no usable face in a photo.
            DataError: an anchor shows another person or does not fit the photo.
        """
        rows = [self.rows[split][index % len(self.rows[split])] for index in indices]
        sources, meshes, anchors = [], [], []
        for row in rows:
            path = self.folder / row["file_name"]
            image = read_image(path).pixels
            _, mesh = require_mesh(image, path, min_size=MIN_FACE)
            aligned = align_face(image, mesh, self.size)
            sources.append(aligned.pixels)
            meshes.append(aligned.to_crop(mesh)[:, :2])
            if self.anchored:
                anchors.append(self._anchor(row, image, mesh, aligned.pixels, meshes[-1]))
        preferred = torch.stack(anchors) if anchors else None
        photos = Photos.build(torch.stack(sources), torch.stack(meshes), clean=preferred)
        return TrainingPhotos(photos, preferred, [row["file_name"] for row in rows], [self._person[id(row)] for row in rows])

    def count(self, split: str) -> int | None:
        """See `PhotoSource.count`."""
        return len(self.rows[split])

    def _anchor(self, row: dict[str, str], image: Tensor, mesh: Tensor, source: Tensor, crop_mesh: Tensor) -> Tensor:
        path = self.folder / row["anchor_file_name"]
        retouch = read_image(path).pixels
        ratio = (retouch.shape[1] / retouch.shape[2]) / (image.shape[1] / image.shape[2])
        if not 0.99 < ratio < 1.01:
            raise DataError(
                f"anchor {path}: {retouch.shape[2]}x{retouch.shape[1]} px has another aspect ratio than its photo "
                f"({image.shape[2]}x{image.shape[1]}); anchors must show the same frame"
            )
        retouch = resize(retouch, (image.shape[1], image.shape[2]))
        try:
            _, found = require_mesh(retouch, path, min_size=MIN_FACE)
        except FaceError as error:
            raise DataError(f"anchor {path}: {error}; an anchor must show the photo's face") from error
        span = (mesh[33, :2] - mesh[263, :2]).norm()
        misfit = float((found[:, :2] - mesh[:, :2]).norm(dim=1).mean() / span)
        anchor = align_face(retouch, mesh, self.size).pixels
        both = identity_embedding(torch.stack([source, anchor]), torch.stack([crop_mesh, crop_mesh]))
        distance = float(identity_distance(both[:1], both[1:]))
        if distance > SAME_PERSON:
            raise DataError(f"anchor {path}: shows another person (identity distance {distance:.2f}, at most {SAME_PERSON})")
        if misfit > MAX_MISFIT:
            raise DataError(
                f"anchor {path}: landmarks are off by {misfit:.3f} of the eye distance (at most {MAX_MISFIT}); align it to its photo"
            )
        return anchor


def open_photos(photos: str, size: int, *, need_anchors: bool) -> PhotoSource:
    """The source named by `--photos`.

    Raises:
        DataError: the folder or its metadata.jsonl is missing or malformed.
    """
    if photos == "embedded":
        return SyntheticSource(size)
    return FolderSource(Path(photos), size, need_anchors=need_anchors)


def _read_rows(folder: Path) -> list[tuple[int, dict[str, str]]]:
    path = folder / "metadata.jsonl"
    if not path.is_file():
        raise DataError(
            f"{path}: missing; write one line a photo, for example " + '{"file_name": "a.jpg", "anchor_file_name": "a_retouched.jpg"}'
        )
    rows = []
    for number, row in read_objects(path):
        if not isinstance(row.get("file_name"), str):
            raise DataError(f"{path} line {number}: needs a string file_name")
        for key in ("anchor_file_name", "split", "identity"):
            if key in row and not isinstance(row[key], str):
                raise DataError(f"{path} line {number}: {key} {row[key]!r} must be a string; leave it out where there is none")
        rows.append((number, row))
    return rows


def _people(folder: Path, rows: list[dict[str, str]]) -> list[str] | None:
    """Who is in each photo; None where every row has its split and not every one an identity, so that nobody needs to know."""
    if all(row.get("identity") for row in rows):
        return [row["identity"] for row in rows]
    if all("split" in row for row in rows):
        return None
    files = list(dict.fromkeys(row["file_name"] for row in rows))
    faces = [find_face(read_image(folder / name).pixels, folder / name).embedding for name in files]
    labels = dict(zip(files, cluster_identities(torch.stack(faces)), strict=True))
    names = [row.get("identity") or f"person {labels[row['file_name']]}" for row in rows]
    persons = join_names(names, [labels[row["file_name"]] for row in rows])
    return [persons[name] for name in names]


def _splits(rows: list[dict[str, str]], people: list[str]) -> list[str]:
    """The split of each row: its own, else that of another row of the person, else dealt out by person."""
    of_person = {person: row["split"] for row, person in zip(rows, people, strict=True) if "split" in row}
    of_person |= split_identities([person for person in people if person not in of_person])
    return [row.get("split", of_person[person]) for row, person in zip(rows, people, strict=True)]


def _inside(folder: Path, name: str, number: int) -> None:
    resolved = (folder / name).resolve()
    if not resolved.is_relative_to(folder.resolve()):
        raise DataError(f"metadata.jsonl line {number}: {name!r} leaves the data folder; use paths below it")
    if not resolved.is_file():
        raise DataError(f"metadata.jsonl line {number}: {name!r} does not exist in {folder}")
