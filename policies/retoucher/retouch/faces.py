"""Retouch every face of a picture: find, align, edit at the backbone's resolution, sort the edit by its controls, carry it back."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from policies.retoucher.model.backbone import Backbone, sample_ode
from policies.retoucher.retouch.controls import FaceParts, Spot, combine, split_edit
from policies.retoucher.retouch.options import Controls
from portraitkit.errors import FaceError, ImageError
from portraitkit.faces.align import AlignedFace, FaceEdit, align_face, edited_strips, face_edit, paste_edits
from portraitkit.faces.detect import check_size, no_face
from portraitkit.faces.identity import identity_embedding
from portraitkit.faces.mesh import MIN_SCORE, faces_and_meshes, shown_score
from portraitkit.faces.warp import transform
from portraitkit.pictures.images import Pixels

BATCH = 8
IDENTITY_BOUND = 0.3
"""Largest identity distance between a face and its retouch; from .6 on the net sees two people."""


@dataclass(frozen=True, eq=False)
class RetouchedPicture:
    """What became of a picture."""

    before: Pixels
    edits: list[FaceEdit]  # Of the faces that were retouched
    skipped: tuple[str, ...]  # The faces that were left as they are, and why, in words

    @property
    def faces(self) -> int:
        """How many faces were retouched."""
        return len(self.edits)

    @property
    def pixels(self) -> Float[Tensor, "3 h w"]:
        """RGB, [0, 1]; outside the retouched faces the picture's own values."""
        return paste_edits(self.before, self.edits)

    def strips(self) -> Iterator[tuple[int, Float[Tensor, "3 rows w"]]]:
        """Those rows of it that change, and where they begin."""
        return edited_strips(self.before, self.edits)


@dataclass(frozen=True, eq=False)
class Faces:
    """The faces of a picture."""

    meshes: list[Float[Tensor, "points 3"]]  # Of the faces to retouch, in pixels
    skipped: tuple[str, ...]  # The faces to leave as they are, and why, in words


@torch.no_grad()
def find_faces(pixels: Pixels, min_face: int = 32, path: Path | None = None) -> Faces:
    """Find the faces of at least `min_face` pixels in a picture; `path` is for messages.
    FaceError: no face, or none that is large enough and seen well enough."""
    faces = faces_and_meshes(pixels, min_face)
    if not faces:
        raise no_face(path)
    meshes, skipped = [], []
    for face, mesh, score in faces:
        where = f"face at ({face.box[0]:.0f}, {face.box[1]:.0f})"
        if face.size < min_face:
            skipped.append(f"{where} is {int(face.size)} px, below --min-face {min_face}")
        elif score < MIN_SCORE:
            skipped.append(f"{where} has landmark score {shown_score(score)}, below {MIN_SCORE}")
        else:
            meshes.append(mesh)
    if not meshes:
        check_size(faces[0][0], path, min_face)
        raise FaceError(f"{path or 'picture'}: {'; '.join(skipped)}: use a picture in which the face is not hidden or turned away")
    return Faces(meshes, tuple(skipped))


@dataclass(frozen=True, eq=False)
class FacePlan:
    """One face after the retoucher's pass, ready for any strengths."""

    aligned: AlignedFace  # the crop that the parts are of
    mesh: Float[Tensor, "points 3"]  # in pixels of the picture
    parts: FaceParts

    def scaled(self, scale: float) -> "FacePlan":
        """The same face in a picture that is `scale` times as large."""
        matrix = torch.cat([self.aligned.matrix[:, :2] / scale, self.aligned.matrix[:, 2:]], 1)
        return FacePlan(AlignedFace(self.aligned.pixels, matrix), self.mesh * scale, self.parts)

    def in_picture(self, spot: Spot) -> Spot:
        """One of its spots in pixels of the picture."""
        x, y = transform(torch.tensor([[[spot.x, spot.y]]]), self.aligned.inverse[None])[0, 0].tolist()
        return Spot(x, y, spot.radius / float(self.aligned.matrix[:, 0].norm()), spot.kind)


@torch.no_grad()
def take_apart(pixels: Pixels, faces: Faces, backbone: Backbone, *, prompt: str, num_steps: int, seed: int) -> Iterator[FacePlan]:
    """Run the retoucher's anchor-free ODE once on each face and sort its change; a face's result does not depend on the others.
    ImageError: an edit has a pixel that is not finite."""
    noise = backbone.noise(1, torch.Generator().manual_seed(seed))
    for start in range(0, len(faces.meshes), BATCH):
        meshes = faces.meshes[start : start + BATCH]
        crops = [align_face(pixels, mesh, backbone.resolution) for mesh in meshes]
        before = torch.stack([crop.pixels for crop in crops])
        edited = sample_ode(backbone, backbone.condition(before, prompt), noise.repeat(len(crops), 1, 1), num_steps).to(before)
        if not edited.isfinite().all():
            raise ImageError(
                f"the retouch by backbone {backbone.name} is not finite (NaN or infinity) and is not written; check its weights"
            )
        for mesh, crop, change in zip(meshes, crops, edited - before, strict=True):
            size = crop.pixels.shape[-1]
            native = size / float(crop.matrix[:, 0].norm())
            # spots are sought at about the photo's own resolution, and bounded: neither memory nor time grows with the photo
            working = next((side for side in (128, 256, 512) if side >= native * 0.75), max(512, size))
            aligned = align_face(pixels, mesh, working)
            change = interpolate(change[None], size=aligned.pixels.shape[1:], mode="bicubic", antialias=True, align_corners=False)[0]
            parts = split_edit(aligned.pixels, (aligned.pixels + change).clamp(0, 1), aligned.to_crop(mesh.to(change)))
            yield FacePlan(aligned, mesh, parts)


@torch.no_grad()
def apply_controls(
    pixels: Pixels,
    plans: Iterable[FacePlan],
    controls: Controls,
    *,
    chosen: Mapping[int, Mapping[int, bool]] | None = None,
    skipped: tuple[str, ...] = (),
) -> RetouchedPicture:
    """Put the faces of a picture together again, with these strengths. A face whose identity would move by more than `IDENTITY_BOUND` is
    left as it is, and named with those `skipped` before. By a face's number, the spots by number that are `chosen` are removed or kept
    whatever their kind. If plans come one by one, one at a time is held."""
    edits = []
    for number, plan in enumerate(plans):
        after = combine(plan.parts, controls, (chosen or {}).get(number, {}))
        both = torch.stack([plan.aligned.pixels, after])
        one, other = identity_embedding(both, plan.aligned.to_crop(plan.mesh.to(after))[None])
        moved = float((one - other).norm())
        if moved > IDENTITY_BOUND:
            low = plan.mesh[:, :2].amin(0).tolist()
            where = f"face at ({low[0]:.0f}, {low[1]:.0f})"
            skipped += (f"{where} would move by {moved:.2f} in identity, above {IDENTITY_BOUND}; use less --strength",)
            continue
        edits.append(face_edit(plan.aligned, after, plan.mesh, *pixels.shape[1:]))
    return RetouchedPicture(pixels, edits, skipped)
