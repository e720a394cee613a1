"""Edits of aligned crops, carried back into the picture they were cut from.

What is carried is the edit, never the crop's pixels:

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

from portraitkit.faces.align import AlignedFace
from portraitkit.faces.regions import MIN_SIGMA, OVAL, soft_polygon
from portraitkit.faces.warp import sample
from portraitkit.pictures.images import STRIP, Pixels, unit

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
