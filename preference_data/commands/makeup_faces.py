"""Faces to put makeup on: photos of a folder, or synthetic people."""

import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from portraitkit.errors import ImageError
from portraitkit.faces.align import align_face
from portraitkit.faces.mesh import require_mesh
from portraitkit.pictures.color import luminance
from portraitkit.pictures.images import list_images, read_image, resize
from preference_data.commands.makeup_config import MakeupConfig
from preference_data.people.synthetic import make_person

EMBEDDED_COUNT = 200
NEAR = 3  # bits of 64 in which two pictures of one photo may differ


@dataclass(frozen=True, eq=False)
class BareFace:
    """A face without makeup.

    Attributes:
        pixels: RGB in [0, 1].
        mesh: x, y in pixels.
        digest: sha256 of the photo's file, or of the synthetic person's pixels.
        look_alike: 64-bit difference hash of the whole photo: copies at other sizes or qualities have nearly the same.
        warnings: what the reader changed or dropped, one line each.
    """

    pixels: Float[Tensor, "3 h w"]
    mesh: Float[Tensor, "468 2"]
    digest: str
    look_alike: int
    warnings: tuple[str, ...] = ()


def list_photos(config: MakeupConfig) -> list[str]:
    """Names of the faces to choose from, in order: paths relative to FACES, or embedded/<split>-<number>.

    Raises:
        ImageError: a folder without photos.
    """
    if config.embedded:
        number = -(-(config.count or EMBEDDED_COUNT) // config.looks_per_face)
        test = min(max(round(number * config.test_share), int(number > 1 and config.test_share > 0)), number)
        return [f"embedded/train-{i:06d}" for i in range(number - test)] + [f"embedded/held_out-{i:06d}" for i in range(test)]
    found: list[str] = []
    for folder, inner, _ in os.walk(config.faces):
        inner[:] = sorted(
            name for name in inner if not name.startswith(".") and Path(folder, name).resolve() != config.output_dir.resolve()
        )
        found += [photo.relative_to(config.faces).as_posix() for photo in list_images(folder)]
    if not found:
        raise ImageError(f"{config.faces}: no photos in this folder or below it; give one that holds some")
    return sorted(found)


def split_of_person(name: str) -> str | None:
    """The split that a synthetic person was made for; None for photos."""
    return name.removeprefix("embedded/").split("-")[0] if name.startswith("embedded/") else None


def open_face(config: MakeupConfig, name: str) -> BareFace:
    """Read or make one face.

    Args:
        config: of the command.
        name: from `list_photos`.

    Raises:
        ImageError: the photo cannot be read.
        FaceError: it shows no face, a small one, or one whose mesh cannot be trusted.
    """
    if config.embedded:
        number = int.from_bytes(sha256(f"{config.seed} {name}".encode()).digest()[:7])
        person = make_person(split_of_person(name) or "train", torch.Generator().manual_seed(number), size=config.size)
        return BareFace(person.clean, person.mesh, sha256(person.clean.numpy().tobytes()).hexdigest(), difference_hash(person.clean))
    path = config.faces / name
    if not path.resolve().is_relative_to(config.faces.resolve()):
        raise ImageError(f"{path}: leads out of {config.faces}; copy the photo into it")
    image = read_image(path)
    with torch.no_grad():
        _, mesh = require_mesh(image.pixels, path, min_size=config.min_face)
        pixels, points = image.pixels, mesh
        if config.crop:
            aligned = align_face(image.pixels, mesh, config.size)
            pixels, points = aligned.pixels, aligned.to_crop(mesh)
    digest = sha256(path.read_bytes()).hexdigest()
    return BareFace(pixels, points[:, :2], digest, difference_hash(image.pixels), image.warnings)


def difference_hash(pixels: Float[Tensor, "3 h w"]) -> int:
    """64 bits: whether each of 8 x 8 places is brighter than its right neighbour (dHash)."""
    small = luminance(resize(pixels, (8, 9)))[0]
    bits = (small[:, 1:] > small[:, :-1]).flatten().tolist()
    return sum(1 << i for i, bit in enumerate(bits) if bit)


def group_copies(hashes: list[int]) -> list[int]:
    """A group number for each photo: copies and near copies (at most `NEAR` bits apart, also by way of others) share one."""
    values = np.array(hashes, dtype=np.uint64)
    group = list(range(len(values)))

    def find(i: int) -> int:
        while group[i] != i:
            group[i] = group[group[i]]
            i = group[i]
        return i

    for i, value in enumerate(values):
        for j in np.flatnonzero(np.bitwise_count(values[:i] ^ value) <= NEAR).tolist():
            group[find(i)] = find(j)
    return [find(i) for i in range(len(values))]
