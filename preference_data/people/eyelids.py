"""Lids that slide over the eyeball: the skin of a lid stretches or gathers, the eyeball under it stays where it is."""

import torch
from jaxtyping import Float
from torch import Tensor

from preference_data.people.face_frame import FaceFrame, polyline, smooth_step

UPPER_LIDS = ((33, 246, 161, 160, 159, 158, 157, 173, 133), (362, 398, 384, 385, 386, 387, 388, 466, 263))
LOWER_LIDS = ((33, 7, 163, 144, 145, 153, 154, 155, 133), (362, 382, 381, 380, 374, 373, 390, 249, 263))
LID = 0.11
SCLERA = (0.80, 0.78, 0.76)


def slide_lids(
    photo: Float[Tensor, "3 h w"], at: Float[Tensor, "h w 2"], face: FaceFrame, *, lower: float, lift: float
) -> Float[Tensor, "3 h w"]:
    """The photo read at `at`, with other lids.

    Args:
        photo: RGB, [0, 1].
        at: of each pixel, in the face's frame.
        face: its frame.
        lower: how far the upper lid comes down, over the eye's opening; negative: how far it rises.
        lift: how far the lower lid rises, over the eye's opening; `lower + lift` is at most 1, where the eye is closed.
    """
    x, y = at.unbind(-1)
    out = face.sample(photo, x, y)
    if lower == 0 and lift == 0:
        return out
    for upper_lid, lower_lid in zip(UPPER_LIDS, LOWER_LIDS, strict=True):
        top, bottom = polyline(face.points[list(upper_lid)], x), polyline(face.points[list(lower_lid)], x)
        gap = (bottom - top).clamp_min(0)
        new_top, new_bottom = top + lower * gap, bottom - lift * gap
        crease, sill = top - LID, bottom + LID
        eye = (gap > 1e-4).float()
        if lower < 0:
            opened = _bare_eye(photo, face, x, y, top, bottom, new_top)
            out = torch.lerp(out, opened, eye * face.edge(y - new_top) * face.edge(bottom - y))
        below = sill - (sill - y) * LID / (sill - new_bottom).clamp_min(1e-3)
        out = torch.lerp(out, face.sample(photo, x, below), eye * face.edge(y - new_bottom) * (y < sill))
        above = crease + (y - crease) * LID / (new_top - crease).clamp_min(1e-3)
        out = torch.lerp(out, face.sample(photo, x, above), eye * face.edge(new_top - y) * (y > crease))
        closing = max(0.0, lower + lift - 0.6) / 0.4
        lashes = torch.exp(-((y - new_top) / max(0.012, 0.6 * face.pixel)).square() / 2) * smooth_step(gap, 0.01, 0.04)
        out = out * (1 - 0.55 * closing * lashes)
    return out


def slide_lid_points(face: FaceFrame, *, lower: float, lift: float) -> Float[Tensor, "468 2"]:
    """The landmarks with the lids as `slide_lids` shows them."""
    points = face.points.clone()
    for upper_lid, lower_lid in zip(UPPER_LIDS, LOWER_LIDS, strict=True):
        top, bottom = face.points[list(upper_lid)], face.points[list(lower_lid)]
        points[list(upper_lid), 1] += lower * (polyline(bottom, top[:, 0]) - top[:, 1]).clamp_min(0)
        points[list(lower_lid), 1] -= lift * (bottom[:, 1] - polyline(top, bottom[:, 0])).clamp_min(0)
    return points


def _bare_eye(photo: Tensor, face: FaceFrame, x: Tensor, y: Tensor, top: Tensor, bottom: Tensor, new_top: Tensor) -> Tensor:
    """The eye under a raised lid: a little taller, with the sclera above the iris bare, in the lid's shadow."""
    lift, gap = float((top - new_top).max()), (bottom - top).clamp_min(0)
    source = bottom - (bottom - y) * (gap / (bottom - new_top).clamp_min(1e-4)).sqrt()
    eye = face.sample(photo, x, torch.maximum(source, top + 0.32 * gap))  # below the lashes
    white = face.tinted(SCLERA, photo) * (0.6 + 0.4 * smooth_step(y - new_top, 0.0, 0.045))
    return torch.lerp(eye, white, 0.85 * (1 - smooth_step(y - new_top, 0.5 * lift, 1.05 * lift + 1e-4)))
