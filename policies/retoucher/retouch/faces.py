"""Retouch every face of a picture: find, align, edit at the backbone's resolution, carry the edit back."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from policies.retoucher.backbones import load_backbone
from policies.retoucher.model.adapter import attach_adapter
from policies.retoucher.model.backbone import Backbone, sample_ode
from policies.retoucher.model.loading import loading_options
from policies.retoucher.retouch.command import RetouchConfig
from portraitkit.errors import FaceError
from portraitkit.faces.align import align_face
from portraitkit.faces.detect import check_size, detect_faces, no_face
from portraitkit.faces.mesh import MIN_SCORE, mesh_and_score
from portraitkit.faces.paste import face_edit, paste_edits

BATCH = 8


@dataclass(frozen=True, eq=False)
class RetouchedPicture:
    """What became of a picture."""

    pixels: Float[Tensor, "3 h w"]
    """RGB, [0, 1]; outside the retouched faces the picture's own values."""
    faces: int
    """How many faces were retouched."""
    skipped: tuple[str, ...]
    """The faces that were left as they are, and why, in words."""


@dataclass(frozen=True, eq=False)
class Faces:
    """The faces of a picture."""

    meshes: list[Float[Tensor, "points 3"]]
    """Of the faces to retouch, in pixels."""
    skipped: tuple[str, ...]
    """The faces to leave as they are, and why, in words."""


def open_backbone(config: RetouchConfig) -> Backbone:
    """The backbone of a configuration, its adapter attached.

    Raises:
        ConfigError: an unknown backbone, or a device that is not there.
        WeightsError: weights or adapter missing, or not for each other.
    """
    backbone = load_backbone(config.backbone, config.model, config.resolution, config.device, **loading_options(config))
    if config.adapter is not None:
        attach_adapter(backbone, config.adapter)
    return backbone


@torch.no_grad()
def find_faces(pixels: Float[Tensor, "3 h w"], min_face: int, path: Path | None = None) -> Faces:
    """Find the faces of at least `min_face` pixels in an upright RGB picture in [0, 1]; `path` is for messages.

    Raises:
        FaceError: no face, or none that is large enough and seen well enough.
    """
    faces = detect_faces(pixels)
    if not faces:
        raise no_face(path)
    meshes, skipped = [], []
    for face in faces:
        where = f"face at ({face.box[0]:.0f}, {face.box[1]:.0f})"
        if face.size < min_face:
            skipped.append(f"{where} is {face.size:.0f} px, below --min-face {min_face}")
            continue
        mesh, score = mesh_and_score(pixels, face)
        if score < MIN_SCORE:
            skipped.append(f"{where} has landmark score {score:.2f}, below {MIN_SCORE}")
            continue
        meshes.append(mesh)
    if not meshes:
        check_size(faces[0], path, min_face)
        raise FaceError(f"{path or 'picture'}: {'; '.join(skipped)}: use a picture in which the face is not hidden or turned away")
    return Faces(meshes, tuple(skipped))


@torch.no_grad()
def retouch_faces(pixels: Float[Tensor, "3 h w"], faces: Faces, backbone: Backbone, config: RetouchConfig) -> RetouchedPicture:
    """Retouch faces that were found in an upright RGB picture in [0, 1]."""
    crops = [align_face(pixels, mesh, backbone.resolution) for mesh in faces.meshes]
    edits = []
    for start in range(0, len(crops), BATCH):
        batch = crops[start : start + BATCH]
        edited = _edit(torch.stack([crop.pixels for crop in batch]), backbone, config)
        for crop, after, mesh in zip(batch, edited, faces.meshes[start : start + BATCH], strict=True):
            edits.append(face_edit(crop, after, mesh, *pixels.shape[1:]))
    return RetouchedPicture(paste_edits(pixels, edits, strength=config.strength), len(edits), faces.skipped)


def retouch_picture(
    pixels: Float[Tensor, "3 h w"], backbone: Backbone, config: RetouchConfig, path: Path | None = None
) -> RetouchedPicture:
    """Find and retouch the faces of a picture; arguments and errors as of `find_faces` and `retouch_faces`."""
    return retouch_faces(pixels, find_faces(pixels, config.min_face, path), backbone, config)


def _edit(crops: Float[Tensor, "n 3 size size"], backbone: Backbone, config: RetouchConfig) -> Float[Tensor, "n 3 size size"]:
    """The backbone's edit of aligned crops by its anchor-free ODE; a face's result does not depend on the others."""
    condition = backbone.condition(crops, config.prompt)
    noise = backbone.noise(1, torch.Generator().manual_seed(config.seed))
    return sample_ode(backbone, condition, noise.repeat(len(crops), 1, 1), config.num_steps).to(crops)
