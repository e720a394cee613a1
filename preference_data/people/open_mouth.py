"""Lips that part and a jaw that drops: what lies below the line between the lips moves down, what opens is painted."""

import torch
from jaxtyping import Float
from torch import Tensor

from preference_data.people.face_frame import FaceFrame, polyline, smooth_step

UPPER_LIP = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
LOWER_LIP = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
CORNERS = (78, 308)
LIP_MIDDLES = (13, 14)
CHIN = 152
DARK, TONGUE, TEETH = (0.17, 0.05, 0.05), (0.50, 0.20, 0.20), (0.84, 0.80, 0.72)
TOOTH = 0.058
AJAR = 0.04
"""A mouth open by more than this shows its own teeth."""


class MouthOpening:
    """How far each point of a face moves down when its mouth opens. Everything is in the face's frame.

    The line that parts is the upper edge of the lower lip: a mouth that is open already opens further.
    """

    def __init__(self, face: FaceFrame, *, lips: float, jaw: float) -> None:
        """Set the opening.

        Args:
            face: whose mouth it is.
            lips: how far the lower lip goes down by itself; the chin stays.
            jaw: how far the jaw goes down, with the chin and the lower cheeks.
        """
        self.face, self.lips, self.jaw = face, lips, jaw
        self.line = face.points[list(LOWER_LIP)]
        left, right = face.points[list(CORNERS), 0].tolist()
        self.middle, self.half = (left + right) / 2, (right - left) / 2
        self.chin = float(face.points[CHIN, 1])
        self.ajar = float((face.points[LIP_MIDDLES[1], 1] - face.points[LIP_MIDDLES[0], 1]).clamp_min(0))

    def across(self, x: Tensor) -> Tensor:
        """Place across the mouth: -1 and 1 are its corners."""
        return (x - self.middle) / self.half

    def bow(self, x: Tensor) -> Tensor:
        """Share of the opening at x: 1 in the middle, 0 from the corners on."""
        return (1 - self.across(x).square()).clamp_min(0) ** 0.7

    def gap(self, x: Tensor) -> Tensor:
        """Height of what opens at x."""
        return (self.lips + self.jaw) * self.bow(x)

    def drop(self, x: Tensor, y: Tensor) -> Tensor:
        """How far a point on or below the line moves down; beside the mouth, where nothing parts, the jaw's movement sets in softly."""
        bow, below = self.bow(x), y - polyline(self.line, x)
        lips = self.lips * bow * (1 - smooth_step(below, 0.09, 0.34))
        jaw = self.jaw * (bow + (1 - bow) * smooth_step(below, 0.0, 0.32))
        jaw = jaw * (1 - smooth_step((x - self.middle).abs(), 0.34, 0.80)) * (1 - smooth_step(y, self.chin + 0.02, self.chin + 0.55))
        return lips + jaw

    def source(self, x: Tensor, y: Tensor) -> Tensor:
        """Where a point below the opening was before: the inverse of `y + drop(x, y)`, by fixed-point iteration."""
        line = polyline(self.line, x)
        source = torch.maximum(y - self.gap(x), line)
        for _ in range(6):
            source = torch.maximum(y - self.drop(x, source), line)
        return source

    def move(self, points: Float[Tensor, "468 2"]) -> Float[Tensor, "468 2"]:
        """The landmarks with the mouth open."""
        x, y = points.unbind(-1)
        lower = y > polyline(self.line, x) + 1e-4
        lower[list(LOWER_LIP)] = True
        lower[list(UPPER_LIP)] = False  # they may touch the line; the corners belong to both lips and do not move
        return torch.stack([x, torch.where(lower, y + self.drop(x, y), y)], -1)


def open_mouth(
    picture: Float[Tensor, "3 h w"], photo: Float[Tensor, "3 h w"], at: Float[Tensor, "h w 2"], opening: MouthOpening
) -> Float[Tensor, "3 h w"]:
    """Part the lips.

    Args:
        picture: what stays where it is, as read at `at`.
        photo: where the lower part of the face is read from.
        at: of each pixel, in the face's frame.
        opening: of the mouth.

    Returns:
        The picture with the mouth's inside painted and everything below it moved down.
    """
    if opening.lips + opening.jaw == 0:
        return picture
    face, (x, y) = opening.face, at.unbind(-1)
    depth, gap = y - polyline(opening.line, x), opening.gap(x)
    inside = face.edge(depth) * smooth_step(gap, 0.0, 0.02)
    picture = torch.lerp(picture, _inside(photo, x, depth, gap, opening), inside)
    return torch.lerp(picture, face.sample(photo, x, opening.source(x, y)), face.edge(depth - gap))


def _inside(photo: Tensor, x: Tensor, depth: Tensor, gap: Tensor, opening: MouthOpening) -> Float[Tensor, "3 h w"]:
    """A dark mouth with upper teeth that hang into it, unless the photo shows teeth already, and a tongue low in a wide one."""
    face, t = opening.face, opening.across(x)
    low = smooth_step(depth - gap, -0.09, -0.015) * (1 - t.square()).clamp_min(0) * smooth_step(gap, 0.10, 0.20)
    out = torch.lerp(face.tinted(DARK, photo), face.tinted(TONGUE, photo), 0.7 * low)
    wave = torch.cos(22 * t).abs()
    edge = TOOTH * (1 - 0.35 * t.square()) - 0.004 * wave
    shade = (0.5 + 0.5 * smooth_step(depth, 0.0, 0.04)) * (1 - 0.1 * (1 - wave) ** 4) * (1 - 0.3 * t.square())
    teeth = face.edge(edge - depth) * (1 - smooth_step(t.abs(), 0.62, 0.85)) * (opening.ajar < AJAR)
    return torch.lerp(out, face.tinted(TEETH, photo) * shade, teeth)
