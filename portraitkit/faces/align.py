"""Aligned square crops: eyes level, face centred, chin and hair visible, and the way back.

What is carried back into the picture is the edit, never the crop's pixels:

    picture + mask * upsample(retouched crop - crop)

An editor works on a small crop (128 px, say); a face in a photo may be ten times as wide. Pasting the retouched crop
would replace the face by a blurred one. The difference holds only what the editor changed, and that is smooth: it is
interpolated by a bicubic kernel and added, so that whatever the crop was too small to show (pores, lashes, single
hairs) stays in the picture as it was. Where nothing was edited, nothing changes. A face smaller than the crop obeys the
same formula; its difference is shrunk by an area filter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from portraitkit.errors import ConfigError
from portraitkit.faces.regions import MIN_SIGMA, OVAL, soft_polygon
from portraitkit.faces.warp import invert, placed, sample, similarity, transform
from portraitkit.pictures.images import STRIP, Pixels, unit

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


# ---- edits of a crop, carried back into the picture it was cut from

FRAME = 1 / 16
SOFTNESS = 0.15  # Width of the mask's edge over the distance between the outer eye corners


@dataclass(frozen=True, eq=False)
class FaceEdit:
    """What is to be added to one rectangle of a picture. It is drawn strip by strip: memory does not grow with the face."""

    top: int  # First row of the rectangle
    left: int  # First column of the rectangle
    height: int
    width: int
    difference: Float[Tensor, "3 size size"]  # Retouched minus original, in the crop
    to_picture: Float[Tensor, "2 3"]  # Crop -> picture, in pixels
    oval: Float[Tensor, "n 2"]  # Outline of the face in pixels of the picture
    softness: float  # Width in pixels of the mask's edge

    def drawn(self, start: int, stop: int) -> tuple[Float[Tensor, "3 rows width"], Float[Tensor, "1 rows width"]]:
        """The change, in [-1, 1], and how much of it is taken, in [0, 1], in the picture's rows from `start` to before `stop`."""
        corner = self.oval.new_tensor([self.left, start])
        mask = paste_mask(self.oval - corner, stop - start, self.width, softness=self.softness)
        matrix = self.to_picture.clone()
        matrix[:, 2] -= corner
        change = sample(self.difference[None], matrix[None], (stop - start, self.width), outside="zeros", mode="bicubic")[0]
        return change.clamp(-1, 1), mask


def paste_mask(oval: Float[Tensor, "n 2"], height: int, width: int, *, softness: float) -> Float[Tensor, "1 h w"]:
    """A face's mask that falls to 0 on the outline (in pixels, in order) of the face oval and is exactly 0 outside it.

    It is erf(d / s) shaped by 3 m^2 - 2 m^3, d the distance to the outline: without a kink where it leaves 0. `softness` is the width of
    the falling edge in pixels, all of it inside the oval.
    """
    blurred = soft_polygon(oval, height, width, max(softness / 2, MIN_SIGMA))
    inside = (2 * blurred - 1).clamp(min=0)
    return (inside * inside * (3 - 2 * inside))[None]


def face_edit(
    aligned: AlignedFace, retouched: Float[Tensor, "3 size size"], mesh: Float[Tensor, "468 dim"], height: int, width: int
) -> FaceEdit:
    """Carry the edit of an aligned crop to the picture's resolution; returns the edit within the rectangle around the face oval.

    The mesh is in pixels of the picture, `height` and `width` are the picture's.
    """
    points = mesh.detach().to(retouched)
    oval = points[list(OVAL), :2]
    low, high = oval.amin(0).floor().long().tolist(), oval.amax(0).ceil().long().tolist()
    left, top = max(low[0], 0), max(low[1], 0)
    box_width, box_height = max(min(high[0], width) - left, 0), max(min(high[1], height) - top, 0)
    eyes = float((points[33, :2] - points[263, :2]).norm())
    size = retouched.shape[-1]
    centres = (torch.arange(size).to(retouched) + 0.5) / size
    ramp = (torch.minimum(centres, 1 - centres) / FRAME).clamp(max=1)  # falls to 0 along the border, for faces that reach beyond the crop
    difference = (retouched - aligned.pixels) * (ramp[:, None] * ramp[None])
    return FaceEdit(top, left, box_height, box_width, difference, aligned.inverse, oval, SOFTNESS * eyes)


def edited_strips(image: Pixels, edits: Sequence[FaceEdit], *, strength: float = 1.0) -> Iterator[tuple[int, Float[Tensor, "3 rows w"]]]:
    """Add the edits of all faces, or a share `strength` in [0, 1] of them, to a picture; the strips that change, and their first rows.

    Every edit was made from the original picture, so their order is of no account: where masks overlap and sum to more
    than 1, each gets its share.
    Where all masks are 0, the values are those of `image`, bit for bit.
    """
    for start in range(0, image.shape[1], STRIP):
        rows = unit(image[:, start : start + STRIP])
        total, change = torch.zeros_like(rows[:1]), torch.zeros_like(rows)
        for edit in edits:
            low, high = max(start, edit.top), min(start + rows.shape[1], edit.top + edit.height)
            if low < high and edit.width:
                place = (slice(None), slice(low - start, high - start), slice(edit.left, edit.left + edit.width))
                added, mask = (part.to(rows) for part in edit.drawn(low, high))
                total[place] += mask
                change[place] += mask * added
        if (total > 0).any():
            yield start, torch.where(total > 0, (rows + strength * change / total.clamp(min=1)).clamp(0, 1), rows)


def paste_edits(image: Pixels, edits: Sequence[FaceEdit], *, strength: float = 1.0) -> Float[Tensor, "3 h w"]:
    """The whole picture with the edits of `edited_strips`."""
    out = unit(image).clone()
    for start, rows in edited_strips(image, edits, strength=strength):
        out[:, start : start + STRIP] = rows
    return out
