"""A face's own frame, and smooth fields in it.

The origin is between the outer eye corners, their distance is the unit of length, x runs along them towards the picture's right in an
upright picture, y down the face. Sizes given in this frame fit every face, scale and roll.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from preference_data.people import warps

RIGHT_EYE, LEFT_EYE = 33, 263
CHEEKS = (50, 280, 205, 425, 101, 330)
CHEEK_TINT = (1.0, 0.80, 0.68)
MIRROR = {
    22: 252, 24: 254, 25: 255, 27: 257, 28: 258, 29: 259, 30: 260, 31: 261, 33: 263, 36: 266, 37: 267, 47: 277, 50: 280, 52: 282,
    55: 285, 61: 291, 63: 293, 66: 296, 101: 330, 105: 334, 107: 336, 111: 340, 113: 342, 116: 345, 117: 346, 118: 347, 119: 348,
    120: 349, 123: 352, 124: 353, 129: 358, 133: 362, 142: 371, 143: 372, 157: 384, 158: 385, 159: 386, 160: 387, 161: 388, 173: 398,
    174: 399, 187: 411, 189: 413, 190: 414, 193: 417, 198: 420, 203: 423, 205: 425, 206: 426, 216: 436, 221: 441, 222: 442, 223: 443,
    224: 444, 225: 445, 226: 446, 227: 447, 228: 448, 230: 450, 232: 452, 246: 466,
}  # fmt: skip
"""Landmarks on the person's right, and those on the left that mirror them: the ones that the tables of units and of makeup name."""


@dataclass(frozen=True)
class Push:
    """A gaussian push of the skin around a landmark."""

    at: int  # landmark on the person's right, pushed on both sides, or on the midline
    dx: float  # towards the picture's right; mirrored on the other side, so that for a landmark on the right + is towards the midline
    dy: float  # down
    reach_x: float  # sigma across the face
    reach_y: float  # sigma along it


@dataclass(frozen=True, eq=False)
class FaceFrame:
    """The frame of one face."""

    origin: Float[Tensor, "2"]  # in pixels
    axes: Float[Tensor, "2 2"]  # columns are the unit vectors of x and y, in pixels
    unit: float  # pixels in a unit of length
    points: Float[Tensor, "468 2"]  # the landmarks, in the frame

    @classmethod
    def of(cls, mesh: Float[Tensor, "468 2"]) -> "FaceFrame":
        """The frame of a face with these landmarks (pixels)."""
        across = mesh[LEFT_EYE] - mesh[RIGHT_EYE]
        unit = float(across.norm())
        x = across / unit
        axes = torch.stack([x, torch.stack([-x[1], x[0]])], -1)
        origin = (mesh[LEFT_EYE] + mesh[RIGHT_EYE]) / 2
        return cls(origin, axes, unit, (mesh - origin) @ axes / unit)

    def to_frame(self, pixels: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 2"]:
        """Points of the picture, in the frame."""
        return (pixels - self.origin) @ self.axes / self.unit

    def to_pixels(self, points: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 2"]:
        """The inverse of `to_frame`."""
        return points @ self.axes.T * self.unit + self.origin

    @property
    def pixel(self) -> float:
        """The side of a pixel, in the frame."""
        return 1 / self.unit

    def sample(self, photo: Float[Tensor, "3 h w"], x: Float[Tensor, "hh ww"], y: Float[Tensor, "hh ww"]) -> Float[Tensor, "3 hh ww"]:
        """The photo read at points of the frame."""
        return warps.sample_at(photo, self.to_pixels(torch.stack([x, y], -1)))

    def edge(self, signed: Float[Tensor, "hh ww"]) -> Float[Tensor, "hh ww"]:
        """1 where a signed distance in the frame is positive, 0 where negative, with a ramp of one pixel between."""
        return (signed * self.unit + 0.5).clamp(0, 1)

    def tinted(self, color: tuple[float, float, float], photo: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 1 1"]:
        """A colour as the photo's light shows it: scaled by how bright the cheeks are, and half-way to their tint."""
        cheeks = warps.sample_at(photo, self.to_pixels(self.points[list(CHEEKS)])[None]).mean((1, 2))
        light = (cheeks.amax() / 0.85).clamp(0.3, 1.1)
        tint = (cheeks / cheeks.amax().clamp_min(1e-3) / torch.tensor(CHEEK_TINT)).clamp(0.5, 1.3).sqrt()
        return (torch.tensor(color) * light * tint).view(3, 1, 1)


@dataclass(frozen=True, eq=False)
class Moves:
    """The sum of gaussian pushes as one field of the frame."""

    centres: Float[Tensor, "n 2"]
    vectors: Float[Tensor, "n 2"]
    reaches: Float[Tensor, "n 2"]

    @classmethod
    def of(cls, face: FaceFrame, pushes: Sequence[tuple[Push, float]]) -> "Moves":
        """The field of pushes and their intensities on a face, both sides."""
        centres, vectors, reaches = [], [], []
        for push, intensity in pushes:
            sides = [(push.at, 1)] + ([(MIRROR[push.at], -1)] if push.at in MIRROR else [])
            for at, sign in sides:
                centres.append(face.points[at].tolist())
                vectors.append([push.dx * sign * intensity, push.dy * intensity])
                reaches.append([push.reach_x, push.reach_y])
        return cls(*(torch.tensor(rows).reshape(-1, 2) for rows in (centres, vectors, reaches)))

    def __call__(self, points: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 2"]:
        """How far each point moves."""
        distance = ((points[..., None, :] - self.centres) / self.reaches).square().sum(-1)
        return torch.exp(-distance / 2) @ self.vectors

    def undo(self, points: Float[Tensor, "h w 2"]) -> Float[Tensor, "h w 2"]:
        """Where each point was before: fixed-point iteration, six rounds on a coarse grid of 64 x 64, upsampled."""
        if not len(self.centres):
            return points
        coarse = F.interpolate(points.permute(2, 0, 1)[None], (64, 64), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
        source = coarse
        for _ in range(6):
            source = coarse - self(source)
        shift = F.interpolate((source - coarse).permute(2, 0, 1)[None], points.shape[:2], mode="bicubic", align_corners=False)[0]
        return points + shift.permute(1, 2, 0)


def polyline(line: Float[Tensor, "n 2"], x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Height y of a line through points at x; beyond its ends, that of the end."""
    line = line[line[:, 0].argsort()]
    index = torch.searchsorted(line[:, 0].contiguous(), x.contiguous()).clamp(1, len(line) - 1)
    (x0, y0), (x1, y1) = line[index - 1].unbind(-1), line[index].unbind(-1)
    return torch.lerp(y0, y1, ((x - x0) / (x1 - x0).clamp_min(1e-6)).clamp(0, 1))


def smooth_step(value: Float[Tensor, "*n"], low: float, high: float) -> Float[Tensor, "*n"]:
    """0 up to `low`, 1 from `high`, `3t^2 - 2t^3` between."""
    t = ((value - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)
