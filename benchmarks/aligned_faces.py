"""The faces of a batch, cut out alike: what the identity, skin and reward metrics look at.

The face is found once, in the untouched photo, and photo, picture and reference are cut by that one alignment; so a retouch cannot move
its own crop. Pictures without a usable face get no value, not 0.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.metric import Metric, Pictures, Range, Score, with_known
from portraitkit.errors import FaceError
from portraitkit.faces.align import align_face
from portraitkit.faces.mesh import require_mesh
from reward_models.photos import Photos

Measure = Callable[[Float[Tensor, "n 3 h w"], Photos], Float[Tensor, " n"]]
SIDE = 128
MIN_FACE = 32  # Pixels; smaller than for training, where a face is learned from: benchmarks are asked about small pictures, too
NOTHING = 0.02  # Largest difference of photo and reference that counts as no blemish: a level or two of rounding and compression
UNIT = Range(0, 1)
NO_FACE = "its photo shows no face that can be measured"


@dataclass(frozen=True, eq=False)
class Faces:
    """Aligned faces of the pictures of a batch that have one."""

    rows: list[int]  # their places in the batch
    candidates: Float[Tensor, "n 3 side side"]  # the pictures' faces
    # the photos' faces and what rewards know of them; `clean` is the reference's face where there is one, and the blemishes are what it
    # changed on the skin
    photos: Photos


def aligned_faces(pictures: Pictures) -> Faces | None:
    """Faces of a batch, for `Pictures.once`; None where no picture has one."""
    assert pictures.source is not None
    faces: dict[str, tuple[Tensor, Photos] | None] = {}
    rows, candidates, photos = [], [], []
    for row, source_id in enumerate(pictures.sources):
        reference = None if pictures.reference is None else pictures.reference[row]
        if source_id not in faces:
            faces[source_id] = _find_face(pictures.source[row], reference)
        face = faces[source_id]
        if face is not None:
            mesh, photo = face
            rows.append(row)
            candidates.append(align_face(pictures.pixels[row], mesh, SIDE).pixels)
            photos.append(photo)
    if not rows:
        return None
    joined = {field.name: torch.cat([getattr(photo, field.name) for photo in photos]) for field in fields(Photos)}
    return Faces(rows, torch.stack(candidates), Photos(**joined))


def _find_face(source: Float[Tensor, "3 h w"], reference: Float[Tensor, "3 h w"] | None) -> tuple[Tensor, Photos] | None:
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


def face_metric(name: str, title: str, load: Callable[..., Measure], values: Range = UNIT, **fields: Any) -> Metric:
    """A metric of the aligned faces of pictures and their photos; a reward or a judge is such a measure.

    `load` makes the measure of the weight files, as `Metric.open` does: aligned candidates and their photos to values, NaN where it does
    not apply. Further `fields` are those of `Metric`; higher is better and the code is the caller's own unless they say otherwise.
    """
    common: dict[str, Any] = {"direction": "higher", "licence": "own code", "missing": NO_FACE}

    def open_faces(files: Mapping[str, Path], device: str = "cpu", dtype: str | None = None) -> Score:
        measure = with_known(load, device=device, dtype=dtype)(files)

        def score(pictures: Pictures) -> Float[Tensor, " n"]:
            faces = pictures.once(aligned_faces)
            values = torch.full((len(pictures),), torch.nan)
            if faces is not None:
                values[faces.rows] = measure(faces.candidates, faces.photos).float().cpu()  # a number a face
            return values

        return score

    return Metric(name=name, title=title, range=values, reference="source", open=open_faces, smallest=MIN_FACE, **(common | fields))
