"""Retouch every face of a picture: find, align, edit at the backbone's resolution, carry the edit back."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from policies.retoucher.config import RetoucherConfig
from policies.retoucher.model.backbone import Backbone, sample_ode
from portraitkit.errors import FaceError, ImageError
from portraitkit.faces.align import align_face
from portraitkit.faces.detect import check_size, no_face
from portraitkit.faces.mesh import MIN_SCORE, faces_and_meshes, shown_score
from portraitkit.faces.paste import face_edit, paste_edits

BATCH = 8


@dataclass(frozen=True, eq=False)
class RetouchedPicture:
    """What became of a picture."""

    pixels: Float[Tensor, "3 h w"]  # RGB, [0, 1]; outside the retouched faces the picture's own values
    faces: int  # How many faces were retouched
    skipped: tuple[str, ...]  # The faces that were left as they are, and why, in words


@dataclass(frozen=True, eq=False)
class Faces:
    """The faces of a picture."""

    meshes: list[Float[Tensor, "points 3"]]  # Of the faces to retouch, in pixels
    skipped: tuple[str, ...]  # The faces to leave as they are, and why, in words


@torch.no_grad()
def find_faces(pixels: Float[Tensor, "3 h w"], min_face: int = 32, path: Path | None = None) -> Faces:
    """Find the faces of at least `min_face` pixels in an upright RGB picture in [0, 1]; `path` is for messages.

    Raises:
        FaceError: no face, or none that is large enough and seen well enough.
    """
    faces = faces_and_meshes(pixels, min_face)
    if not faces:
        raise no_face(path)
    meshes, skipped = [], []
    for face, mesh, score in faces:
        where = f"face at ({face.box[0]:.0f}, {face.box[1]:.0f})"
        if face.size < min_face:
            skipped.append(f"{where} is {int(face.size)} px, below --min-face {min_face}")
            continue
        if score < MIN_SCORE:
            skipped.append(f"{where} has landmark score {shown_score(score)}, below {MIN_SCORE}")
            continue
        meshes.append(mesh)
    if not meshes:
        check_size(faces[0][0], path, min_face)
        raise FaceError(f"{path or 'picture'}: {'; '.join(skipped)}: use a picture in which the face is not hidden or turned away")
    return Faces(meshes, tuple(skipped))


@torch.no_grad()
def retouch_faces(
    pixels: Float[Tensor, "3 h w"],
    faces: Faces,
    backbone: Backbone,
    *,
    prompt: str = RetoucherConfig.prompt,
    num_steps: int = RetoucherConfig.num_steps,
    seed: int = 0,
    strength: float = 1.0,
) -> RetouchedPicture:
    """Retouch faces of a picture by the backbone's anchor-free ODE; a face's result does not depend on the others.

    Args:
        pixels: RGB, [0, 1], upright.
        faces: found in it.
        backbone: the editor.
        prompt: editing instruction.
        num_steps: sampling steps.
        seed: of the initial noise, the same for every face.
        strength: share of the edit that is applied, [0, 1].

    Raises:
        ImageError: an edit has a pixel that is not finite.
    """
    crops = [align_face(pixels, mesh, backbone.resolution) for mesh in faces.meshes]
    noise = backbone.noise(1, torch.Generator().manual_seed(seed))
    edits = []
    for start in range(0, len(crops), BATCH):
        batch = crops[start : start + BATCH]
        before = torch.stack([crop.pixels for crop in batch])
        condition = backbone.condition(before, prompt)
        edited = sample_ode(backbone, condition, noise.repeat(len(batch), 1, 1), num_steps).to(before)
        if not edited.isfinite().all():
            raise ImageError(
                f"the retouch by backbone {backbone.name} is not finite (NaN or infinity) and is not written; check its weights"
            )
        for crop, after, mesh in zip(batch, edited, faces.meshes[start : start + BATCH], strict=True):
            edits.append(face_edit(crop, after, mesh, *pixels.shape[1:]))
    return RetouchedPicture(paste_edits(pixels, edits, strength=strength), len(edits), faces.skipped)
