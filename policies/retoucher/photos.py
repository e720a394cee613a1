"""Photos to train on, each with its anchor, a preferred retouch: the embedded synthetic portraits, or a user's folder.

A folder's anchors are files of the user's, or the photos themselves, blemishes being painted onto them.
"""

import hashlib
import os
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from policies.retoucher.config import RetoucherConfig
from portraitkit.errors import DataError, RunFolderError
from portraitkit.faces.regions import region_masks
from portraitkit.files.jsonl import Rejected
from portraitkit.runs.shards import Growing
from portraitkit.runs.terminal import progress_bar
from preference_data.pair_set import list_photos
from preference_data.people.photos import PhotoRow, describe_rows, folder_rows, open_photo
from preference_data.people.synthetic import SEEDS, make_case, paint_blemishes
from preference_data.schema import SPLITS
from reward_models.photos import Photos

FACES_VERSION = 2
"""Of the cache of faces: raised when the detector, the mesh, the identity net or what an anchor must meet changes."""
SHOWN = 3
"""Photos that cannot be used, named one by one."""


@dataclass(frozen=True)
class TrainingPhotos:
    """A batch of photos with their anchors."""

    photos: Photos  # and what rewards know of them
    anchors: Float[Tensor, "n 3 h w"] | None  # the preferred retouch of each, RGB in [0, 1]; None where the set has none
    ids: list[str]  # one name a photo, for logs and errors
    people: list[str]  # who is in each photo; its own name where each is another person
    evaluations: int = 0  # of the network, spent on the anchors


@runtime_checkable
class PhotoSource(Protocol):
    """An indexed set of photos; `train` may be endless. They come on the device of the policy, their indices' draws from the CPU."""

    @property
    def people(self) -> dict[str, int]:
        """How many different ones each split has; empty where every photo shows another."""
        ...

    def load(self, split: str, indices: list[int]) -> TrainingPhotos:
        """The photos at `indices` of a split ("train", "validation" or "held_out"). Training starts again at the end of its photos.
        IndexError: no such photo of validation or held_out."""
        ...

    def count(self, split: str) -> int | None:
        """How many photos a split has; None where they never end."""
        ...


class SyntheticSource:
    """The embedded portraits: endless, known blemishes, the clean portrait as anchor; see `preference_data.people.synthetic`."""

    def __init__(self, size: int, device: str = "cpu") -> None:
        self.size, self.device, self.people = size, device, dict[str, int]()

    def load(self, split: str, indices: list[int]) -> TrainingPhotos:
        cases = [vars(make_case(split, SEEDS[split] + index, size=self.size)) for index in indices]
        part = {name: torch.stack([case[name] for case in cases]).to(self.device) for name in ("source", "mesh", "opacity", "clean")}
        photos = Photos.build(part["source"], part["mesh"], opacity=part["opacity"], clean=part["clean"])
        ids = [f"synthetic-{split}-{index}" for index in indices]
        return TrainingPhotos(photos, part["clean"], ids, ids)

    def count(self, split: str) -> int | None:
        """None: every index is another person."""
        return None


@dataclass(frozen=True)
class PhotoFolder:
    """A folder of photos as it was read: those that can be used, and those that are set aside."""

    path: Path
    rows: list[PhotoRow]
    rejected: list[Rejected]

    def name(self, row: PhotoRow) -> str:
        """A photo's file, relative to the folder."""
        assert row.file is not None
        return row.file.relative_to(self.path).as_posix()


class FolderSource:
    """A user's photos. Rewards know their blemishes where they are painted on, measure them against the anchor where every photo has one,
    and else against the skin around spots that a detector finds, which can be hacked by smoothing (docs/rewards.md).

    Photos come in an order drawn by their names: a few steps, or an evaluation of a few, see more than the first people of a list. With
    `painted` they are taken as clean portraits, and blemishes are painted onto them: new ones whenever training comes to a photo again,
    always the same in the other splits.
    """

    def __init__(self, folder: PhotoFolder, size: int, *, painted: bool = False, device: str = "cpu") -> None:
        self.folder, self.size, self.painted, self.device = folder, size, painted, device
        mixed = sorted(folder.rows, key=lambda row: zlib.crc32(folder.name(row).encode()))
        self.rows = {split: [row for row in mixed if row.split == split] for split in SPLITS}
        self.people = {split: len({row.identity for row in rows}) for split, rows in self.rows.items()}
        self.anchored = painted or all(row.anchor is not None for row in folder.rows)

    def load(self, split: str, indices: list[int]) -> TrainingPhotos:
        rows = [self.rows[split][index % len(self.rows[split]) if split == "train" else index] for index in indices]
        names = [self.folder.name(row) for row in rows]
        seeds = indices if split == "train" else [zlib.crc32(name.encode()) for name in names]
        opened = [self._open(row, SEEDS[split] + seed) for row, seed in zip(rows, seeds, strict=True)]
        parts = ([value for value in values if value is not None] for values in zip(*opened, strict=True))
        pixels, meshes, opacity, anchors = (torch.stack(part).to(self.device) if part else None for part in parts)
        assert pixels is not None and meshes is not None
        preferred = anchors if self.anchored else None
        photos = Photos.build(pixels, meshes, opacity=opacity, clean=preferred)
        return TrainingPhotos(photos, preferred, names, [row.identity for row in rows])

    def _open(self, row: PhotoRow, seed: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Pixels, mesh, opacity of painted blemishes and anchor."""
        photo = open_photo(self.folder.path / self.folder.name(row), None if self.painted else row.anchor, self.size, row.face)
        if not self.painted:
            return photo.pixels, photo.mesh, None, photo.anchor
        skin = region_masks(photo.mesh, self.size, self.size, only=("skin",))["skin"]
        source, opacity = paint_blemishes(photo.pixels, skin, torch.Generator().manual_seed(seed))
        return source, photo.mesh, opacity, photo.pixels

    def count(self, split: str) -> int | None:
        return len(self.rows[split])


def check_photos(config: RetoucherConfig) -> None:
    """DataError where the folder or all photos are missing, or a photo lacks an anchor that is needed, before any is opened."""
    if config.photos == "embedded":
        return
    listed = list_photos(Path(config.photos))
    bare = [(line, row["file_name"]) for line, row in zip(listed.lines, listed.rows, strict=True) if not row.get("anchor_file_name")]
    needed = config.anchors == "file" or (config.anchors is None and (config.ablate or config.learns_from_anchors))
    if bare and needed:
        first = f"the first: line {bare[0][0]}, {bare[0][1]}"
        asks, without = ("--anchor-weight", "--anchor-weight 0") if not config.dpg and config.anchor_weight > 0 else ("DPG", "--no-dpg")
        raise DataError(
            f"{config.photos}: {len(bare)} of {len(listed.rows)} photos have no anchor_file_name ({first}), and {asks} needs a preferred "
            "retouch of each: give --anchors painted (blemishes are painted onto clean portraits) or --anchors best-of-n (the policy's "
            f"own best), add them to metadata.jsonl, or train with {without}"
        )


def read_photos(photos: str, cache_dir: str | None, console: Console) -> PhotoFolder | None:
    """The folder named by `--photos`, split by person; None for the embedded people. The first photos that are set aside are named.
    DataError: no folder, no usable photo, or too few people."""
    if photos == "embedded":
        return None
    folder = Path(photos)
    with progress_bar(console) as bar:
        track = partial(bar.track, description="looking at the photos")
        try:
            rows, rejected = folder_rows(folder, cache=faces_cache(folder, cache_dir), track=track)
        except RunFolderError as error:
            raise RunFolderError(f"faces cannot be kept in {error}, or give another --cache-dir (none keeps nothing)") from error
    aside = [f"line {bad.line}: {bad.reason}" for bad in rejected]
    if missing := [split for split in SPLITS if all(row.split != split for row in rows)]:
        people = len({row.identity for row in rows})
        unusable = f" ({len(aside)} cannot be used; the first, {aside[0]})" if aside else ""
        raise DataError(
            f"{folder}: {len(rows)} photos of {people} people{unusable} leave none for {missing[0]}; train, validation and held_out need a "
            "person each, who is in no other: add people, or name the split of every photo in metadata.jsonl"
        )
    more = [f"{folder}: {len(aside)} photos set aside in all, see quarantine.jsonl in the run's folder"] if len(aside) > SHOWN else []
    for line in (*(f"{folder} {reason}; set aside" for reason in aside[:SHOWN]), *more):
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print(describe_rows(rows), highlight=False, soft_wrap=True)
    return PhotoFolder(folder, rows, rejected)


def open_photos(folder: PhotoFolder | None, size: int, anchors: str | None = None, device: str = "cpu") -> PhotoSource:
    """The source of a folder's photos, or of the embedded ones, as faces of `size` pixels a side; `anchors` as `--anchors` says."""
    return SyntheticSource(size, device) if folder is None else FolderSource(folder, size, painted=anchors == "painted", device=device)


def faces_cache(folder: Path, cache_dir: str | None = None) -> Growing | None:
    """Keeps the faces of a folder from run to run."""
    home = Path(cache_dir or os.environ.get("PORTRAITKIT_CACHE") or "~/.cache/portraitkit").expanduser()
    name = hashlib.sha256(f"{FACES_VERSION} {folder.resolve()}".encode()).hexdigest()[:16]
    return None if cache_dir == "none" else Growing(home / "faces" / f"{name}.jsonl")
