"""Whose face a photo shows and where, and whether what is said to be a retouch of it shows the same face in the same place."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from portraitkit.errors import DataError, FaceError
from portraitkit.faces.identity import SAME_PERSON, identity_embedding
from portraitkit.faces.mesh import require_mesh
from portraitkit.pictures.images import resize

MIN_FACE = 48
MAX_ASPECT_GAP = 0.01
MAX_MISFIT = 0.06
"""Largest mean distance of landmarks, in distances between the outer eye corners."""
EYES = (33, 263)


@dataclass(frozen=True)
class PhotoFace:
    """The face of a photo.

    Attributes:
        frame: height and width of the photo.
        mesh: landmarks in pixels of the photo.
        embedding: of the identity net.
    """

    frame: tuple[int, int]
    mesh: Float[Tensor, "468 3"]
    embedding: Float[Tensor, " dim"]


def photo_face(pixels: Float[Tensor, "3 h w"], path: Path) -> PhotoFace:
    """The face of a picture, RGB in [0, 1].

    Raises:
        FaceError: no usable face.
    """
    _, mesh = require_mesh(pixels, path, min_size=MIN_FACE)
    with torch.no_grad():
        embedding = identity_embedding(pixels[None], mesh[None, :, :2])[0]
    return PhotoFace((pixels.shape[1], pixels.shape[2]), mesh, embedding)


def fit_retouch(pixels: Float[Tensor, "3 h w"], photo: PhotoFace, path: Path, what: str) -> Float[Tensor, "3 h2 w2"]:
    """A retouch brought to its photo's size, once it is known to be one.

    Args:
        pixels: of the retouch, RGB in [0, 1].
        photo: the face that it must show.
        path: of the retouch, for the message.
        what: it is, "anchor" or "retouch", for the message.

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
        found = photo_face(pixels, path)
    except FaceError as error:
        raise DataError(f"{what} {error}; it must show the photo's face") from error
    distance = float((found.embedding - photo.embedding).norm())
    if distance > SAME_PERSON:
        raise DataError(f"{what} {path}: shows another person than its photo (identity distance {distance:.2f}, at most {SAME_PERSON:g})")
    span = (photo.mesh[EYES[0], :2] - photo.mesh[EYES[1], :2]).norm()
    misfit = float((found.mesh - photo.mesh)[:, :2].norm(dim=1).mean() / span)
    if misfit > MAX_MISFIT:
        raise DataError(
            f"{what} {path}: its face is off by {misfit:.2f} of the eyes' distance (at most {MAX_MISFIT:g}); align it to its photo"
        )
    return pixels
