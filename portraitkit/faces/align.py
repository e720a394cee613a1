"""Aligned square crops: eyes level, face centred, chin and hair visible, and the way back."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from portraitkit.errors import ConfigError
from portraitkit.faces.warp import invert, placed, sample, similarity, transform
from portraitkit.pictures.images import Pixels

TEMPLATE = {
    33: (-0.5, 0.0),
    133: (-0.191, 0.02),
    362: (0.191, 0.02),
    263: (0.5, 0.0),
    2: (0.0, 0.5),
    61: (-0.32, 0.643),
    291: (0.32, 0.643),
}
"""Mesh point -> place: eye corners, base of the nose, corners of the mouth. Unit: the distance between the outer eye
corners, origin between them. Symmetric mean of the bundled portraits' meshes."""
OVAL_TOP, OVAL_BOTTOM = -0.5, 1.165
ABOVE = 0.6  # share of the margin that lies above the face oval, for the hair


@dataclass(frozen=True, eq=False)
class AlignedFace:
    """An aligned crop and how it was cut."""

    pixels: Float[Tensor, "3 size size"]  # RGB, [0, 1]
    matrix: Float[Tensor, "2 3"]  # Picture -> crop, in pixels: p_crop = matrix[:, :2] @ p_picture + matrix[:, 2]

    @property
    def inverse(self) -> Float[Tensor, "2 3"]:
        """Crop -> picture, in pixels."""
        return invert(self.matrix[None])[0]

    def to_crop(self, points: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim"]:
        """Map points (a mesh, for instance) from the picture to the crop; a third coordinate is scaled."""
        scale = self.matrix[:, 0].norm()
        return torch.cat([transform(points[None, :, :2], self.matrix[None])[0], points[:, 2:] * scale], -1)


def alignment_matrix(mesh: Float[Tensor, "468 dim"], size: int, *, margin: float = 0.3) -> Float[Tensor, "2 3"]:
    """The similarity, picture -> crop of `size` pixels, that `align_face` cuts with, from a mesh in pixels of the picture. `margin` is the
    share of the crop's height outside a mean face's oval, .6 of it above.

    Raises:
        ConfigError: `margin` is not in [0, .9], or `size` is below 16.
    """
    if not 0 <= margin <= 0.9:
        raise ConfigError(f"margin {margin}: must be in [0, 0.9], the share of the crop outside the face")
    if size < 16:
        raise ConfigError(f"size {size}: an aligned face needs at least 16 pixels")
    scale = (1 - margin) * size / (OVAL_BOTTOM - OVAL_TOP)
    origin = mesh.new_tensor([size / 2, margin * ABOVE * size - OVAL_TOP * scale])
    target = mesh.new_tensor(list(TEMPLATE.values())) * scale + origin
    return similarity(mesh.detach()[None, list(TEMPLATE), :2], target[None])[0]


def align_face(image: Pixels, mesh: Float[Tensor, "468 dim"], size: int, *, margin: float = 0.3) -> AlignedFace:
    """Cut the aligned face out of a picture; beyond the picture its edge is repeated.

    The mesh is taken as given; the crop is differentiable with respect to `image`: bicubic, with an area filter where it shrinks the
    picture. See `alignment_matrix`, which says what is refused, too.
    """
    matrix = alignment_matrix(placed(mesh, image), size, margin=margin)
    pixels = sample(image[None], matrix[None], size, outside="border", mode="bicubic")[0]
    return AlignedFace(pixels.clamp(0, 1), matrix)
