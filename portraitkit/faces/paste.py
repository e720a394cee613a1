"""Edits of aligned crops, carried back into the picture they were cut from.

What is carried is the edit, never the crop's pixels:

    picture + mask * upsample(retouched crop - crop)

An editor works on a small crop (128 px, say); a face in a photo may be ten times as wide. Pasting the retouched crop
would replace the face by a blurred one. The difference holds only what the editor changed, and that is smooth: it is
interpolated by a bicubic kernel and added, so that whatever the crop was too small to show (pores, lashes, single
hairs) stays in the picture as it was. Where nothing was edited, nothing changes. A face smaller than the crop obeys the
same formula; its difference is shrunk by an area filter.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from portraitkit.faces.align import AlignedFace
from portraitkit.faces.regions import MIN_SIGMA, OVAL, soft_polygon
from portraitkit.faces.warp import sample

FRAME = 1 / 16


@dataclass(frozen=True, eq=False)
class FaceEdit:
    """What is to be added to one rectangle of a picture."""

    top: int  # First row of the rectangle
    left: int  # First column of the rectangle
    change: Float[Tensor, "3 h w"]  # Retouched minus original at the picture's resolution, in [-1, 1]
    mask: Float[Tensor, "1 h w"]  # How much of it is taken, in [0, 1]

    @property
    def place(self) -> tuple[slice, slice, slice]:
        """Where the rectangle lies in a picture (3, h, w)."""
        height, width = self.mask.shape[1:]
        return slice(None), slice(self.top, self.top + height), slice(self.left, self.left + width)


def paste_mask(oval: Float[Tensor, "n 2"], height: int, width: int, *, softness: float) -> Float[Tensor, "1 h w"]:
    """A face's mask that falls to 0 on the outline of the face oval and is exactly 0 outside it.

    Args:
        oval: outline in pixels, in order.
        height: of the mask.
        width: of the mask.
        softness: width of the falling edge in pixels, all of it inside the oval.

    Returns:
        erf(d / s) shaped by 3 m^2 - 2 m^3, d the distance to the outline: without a kink where it leaves 0.
    """
    blurred = soft_polygon(oval, height, width, max(softness / 2, MIN_SIGMA))
    inside = (2 * blurred - 1).clamp(min=0)
    return (inside * inside * (3 - 2 * inside))[None]


def face_edit(
    aligned: AlignedFace,
    retouched: Float[Tensor, "3 size size"],
    mesh: Float[Tensor, "468 dim"],
    height: int,
    width: int,
    *,
    softness: float = 0.15,
) -> FaceEdit:
    """Carry the edit of an aligned crop to the picture's resolution; returns the edit within the rectangle around the face oval.

    Args:
        aligned: the crop as it was cut.
        retouched: the crop as the editor returned it, RGB in [0, 1].
        mesh: the face's mesh in pixels of the picture.
        height: of the picture.
        width: of the picture.
        softness: width of the mask's edge over the distance between the outer eye corners.
    """
    points = mesh.detach().to(retouched)
    oval = points[list(OVAL), :2]
    low, high = oval.amin(0).floor().long().tolist(), oval.amax(0).ceil().long().tolist()
    left, top = max(low[0], 0), max(low[1], 0)
    box_width, box_height = max(min(high[0], width) - left, 0), max(min(high[1], height) - top, 0)
    corner = oval.new_tensor([left, top])
    eyes = float((points[33, :2] - points[263, :2]).norm())
    mask = paste_mask(oval - corner, box_height, box_width, softness=softness * eyes)
    difference = (retouched - aligned.pixels) * _frame(retouched)
    to_box = aligned.inverse.clone()
    to_box[:, 2] -= corner
    side = max(box_height, box_width, 1)
    change = sample(difference[None], to_box[None], side, outside="zeros", mode="bicubic")[0]
    return FaceEdit(top, left, change[:, :box_height, :box_width].clamp(-1, 1), mask)


def paste_edits(image: Float[Tensor, "3 h w"], edits: Sequence[FaceEdit], *, strength: float = 1.0) -> Float[Tensor, "3 h w"]:
    """Add the edits of all faces, or a share `strength` in [0, 1] of them, to an RGB picture in [0, 1].

    Every edit was made from the original picture, so their order is of no account: where masks overlap and sum to more
    than 1, each gets its share.

    Returns:
        The picture with the edits. Where all masks are 0, its values are those of `image`, bit for bit.
    """
    total = image.new_zeros(1, *image.shape[1:])
    change = torch.zeros_like(image)
    for edit in edits:
        mask = edit.mask.to(image)
        total[edit.place] += mask
        change[edit.place] += mask * edit.change.to(image)
    return torch.where(total > 0, (image + strength * change / total.clamp(min=1)).clamp(0, 1), image)


def _frame(crop: Float[Tensor, "3 size size"]) -> Float[Tensor, "size size"]:
    """1 inside a crop, falling to 0 along its border, for faces that reach beyond it."""
    size = crop.shape[-1]
    centres = (torch.arange(size).to(crop) + 0.5) / size
    ramp = (torch.minimum(centres, 1 - centres) / FRAME).clamp(max=1)
    return ramp[:, None] * ramp[None]
