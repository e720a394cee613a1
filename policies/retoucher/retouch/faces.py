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
from policies.retoucher.retouch.retouch_config import RetouchConfig
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
def retouch_picture(
    pixels: Float[Tensor, "3 h w"], backbone: Backbone, config: RetouchConfig, path: Path | None = None
) -> RetouchedPicture:
    """Retouch every face of a picture.

    Args:
        pixels: RGB, [0, 1], upright.
        backbone: the editor.
        config: sampling steps, prompt, seed, strength, smallest face and device.
        path: of the picture, for messages.

    Returns:
        The picture with the edits.

    Raises:
        FaceError: no face, or none that is large enough and seen well enough.
    """
    meshes, skipped = _find(pixels, config.min_face, path)
    crops = [align_face(pixels, mesh, backbone.resolution) for mesh in meshes]
    edits = []
    for start in range(0, len(crops), BATCH):
        part = crops[start : start + BATCH]
        edited = _edit(torch.stack([crop.pixels for crop in part]), backbone, config)
        for crop, after, mesh in zip(part, edited, meshes[start : start + BATCH], strict=True):
            edits.append(face_edit(crop, after, mesh, *pixels.shape[1:]))
    return RetouchedPicture(paste_edits(pixels, edits, strength=config.strength), len(edits), skipped)


def _find(pixels: Tensor, min_face: int, path: Path | None) -> tuple[list[Tensor], tuple[str, ...]]:
    """Meshes of the faces to retouch, and the other faces in words."""
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
    return meshes, tuple(skipped)


def _edit(crops: Float[Tensor, "n 3 size size"], backbone: Backbone, config: RetouchConfig) -> Float[Tensor, "n 3 size size"]:
    """The backbone's edit of aligned crops by its anchor-free ODE; a face's result does not depend on the others."""
    condition = backbone.condition(crops, config.prompt)
    noise = backbone.noise(1, torch.Generator().manual_seed(config.seed))
    return sample_ode(backbone, condition, noise.repeat(len(crops), 1, 1), config.num_steps).to(crops)
