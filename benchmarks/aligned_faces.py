"""The faces of a batch, cut out alike: what the identity, skin and reward metrics look at.

The face is found once, in the untouched photo, and photo, picture and reference are cut by that one alignment; so a retouch cannot move
its own crop. Pictures without a usable face get no value, not 0.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.metric import Pictures
from portraitkit.errors import FaceError
from portraitkit.faces.align import align_face
from portraitkit.faces.mesh import require_mesh
from reward_models.photos import Photos

Measure = Callable[[Float[Tensor, "n 3 h w"], Photos], Float[Tensor, " n"]]
SIDE = 128
MIN_FACE = 32
NOTHING = 0.02
"""Largest difference of photo and reference that counts as no blemish: a level or two of rounding and compression."""
NO_FACE = "its photo shows no face that can be measured"


@dataclass(frozen=True, eq=False)
class Faces:
    """Aligned faces of the pictures of a batch that have one.

    Attributes:
        rows: their places in the batch.
        candidates: the pictures' faces.
        photos: the photos' faces and what rewards know of them; `clean` is the reference's face where there is one, and the blemishes
            are what it changed on the skin.
    """

    rows: list[int]
    candidates: Float[Tensor, "n 3 side side"]
    photos: Photos


def aligned_faces(pictures: Pictures) -> Faces | None:
    """Faces of a batch, for `Pictures.once`; None where no picture has one."""
    assert pictures.source is not None
    found: dict[str, tuple[Tensor, Photos] | None] = {}
    rows, candidates, parts = [], [], []
    for row, source_id in enumerate(pictures.sources):
        reference = None if pictures.reference is None else pictures.reference[row]
        if source_id not in found:
            found[source_id] = _known(pictures.source[row], reference)
        known = found[source_id]
        if known is not None:
            mesh, photo = known
            rows.append(row)
            candidates.append(align_face(pictures.pixels[row], mesh, SIDE).pixels)
            parts.append(photo)
    if not rows:
        return None
    photos = Photos(**{part.name: torch.cat([getattr(photo, part.name) for photo in parts]) for part in fields(Photos)})
    return Faces(rows, torch.stack(candidates), photos)


def _known(source: Float[Tensor, "3 h w"], reference: Float[Tensor, "3 h w"] | None) -> tuple[Tensor, Photos] | None:
    try:
        _, mesh = require_mesh(source, min_size=MIN_FACE)
    except FaceError:
        return None
    face = align_face(source, mesh, SIDE)
    photo = Photos.build(face.pixels[None], face.to_crop(mesh)[None])
    if reference is None:
        return mesh, photo
    clean = align_face(reference, mesh, SIDE).pixels[None]
    change = (face.pixels - clean).abs().amax(1, keepdim=True)
    opacity = ((change - NOTHING) / 0.1).clamp(0, 1) * photo.skin
    return mesh, Photos.build(face.pixels[None], photo.meshes, opacity=opacity, clean=clean)


def on_faces(function: Measure, pictures: Pictures) -> Float[Tensor, " n"]:
    """A measure of candidates and photos on a batch: NaN where there is no face."""
    faces = pictures.once(aligned_faces)
    values = torch.full((len(pictures),), torch.nan)
    if faces is not None:
        values[faces.rows] = function(faces.candidates, faces.photos).float()
    return values
