"""Mesh morphs, shape warps and tone changes that turn a few real portraits into many synthetic people; a face's own frame.

All fields are dense maps from output pixels to input pixels, applied by one `grid_sample`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def pixel_grid(height: int, width: int) -> Float[Tensor, "h w 2"]:
    """Pixel centres as (x, y), in pixels: the centre of the first pixel is (0.5, 0.5)."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y], dim=-1)


def sample_at(image: Float[Tensor, "c h w"], points: Float[Tensor, "hh ww 2"]) -> Float[Tensor, "c hh ww"]:
    """The image read at `points` (x, y in pixels, centres at .5), bilinear, edges repeated."""
    height, width = image.shape[-2:]
    grid = points / torch.tensor([width, height]) * 2 - 1
    return F.grid_sample(image[None], grid[None], padding_mode="border", align_corners=False)[0]


def landmark_field(
    at: Float[Tensor, "points 2"], shift: Float[Tensor, "points 2"], size: int, *, reach: float = 0.06, nodes: int = 48
) -> Float[Tensor, "h w 2"]:
    """A smooth displacement that equals `shift` near the landmarks `at` and dies out away from them.

    Nadaraya-Watson regression with a Gaussian kernel of `reach` (share of the side) on a grid of `nodes` squared, then upsampled.
    """
    grid = pixel_grid(nodes, nodes).reshape(-1, 2) * (size / nodes)
    weight = torch.exp(-torch.cdist(grid, at).square() / (2 * (reach * size) ** 2))
    field = weight @ shift / (weight.sum(1, keepdim=True) + 0.5)
    return F.interpolate(field.T.reshape(1, 2, nodes, nodes), size=(size, size), mode="bicubic", align_corners=False)[0].permute(1, 2, 0)


def random_shape(at: Float[Tensor, "points 2"], size: int, generator: torch.Generator) -> Float[Tensor, "points 2"]:
    """Landmarks of another face shape: anisotropic scale plus eight smooth random bumps, in pixels."""
    centre = at.mean(0)
    scale = 1 + 0.05 * torch.randn(2, generator=generator).clamp(-2, 2)
    out = centre + (at - centre) * scale
    for _ in range(8):
        anchor = at[torch.randint(len(at), (1,), generator=generator)]
        reach = (0.06 + 0.10 * torch.rand(1, generator=generator)) * size
        push = 0.012 * size * torch.randn(1, 2, generator=generator).clamp(-2, 2)
        out = out + torch.exp(-(at - anchor).square().sum(1, keepdim=True) / (2 * reach**2)) * push
    return out


def skin_likeness(image: Float[Tensor, "3 h w"], skin: Float[Tensor, "1 h w"]) -> Float[Tensor, "1 h w"]:
    """How much each pixel's chromaticity resembles the face's own skin, in [0, 1]."""
    chroma = image / (image.sum(0, keepdim=True) + 0.05)
    weight = skin / skin.sum().clamp_min(1e-6)
    mean = (chroma * weight).sum((1, 2), keepdim=True)
    var = ((chroma - mean).square() * weight).sum((1, 2), keepdim=True) + 4e-4
    return torch.exp(-((chroma - mean).square() / (2 * var)).sum(0, keepdim=True) / 2)


def random_tone(image: Float[Tensor, "3 h w"], skin: Float[Tensor, "1 h w"], generator: torch.Generator) -> Float[Tensor, "3 h w"]:
    """Another skin tone, white balance, exposure, contrast, saturation and direction of light; RGB stays in [0, 1]."""
    height, width = image.shape[-2:]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).clamp(-2, 2)

    melanin = -0.15 + 1.0 * torch.rand(1, generator=generator)
    darker = image.clamp_min(1e-3) ** (1 + melanin * torch.tensor([0.65, 0.85, 0.95]).view(3, 1, 1))
    out = torch.lerp(image, darker, skin_likeness(image, skin))
    out = out.clamp_min(1e-3) ** torch.exp(0.12 * normal(1))
    out = out * torch.exp(0.05 * normal(3)).view(3, 1, 1) * torch.exp(0.12 * normal(1))
    grey = out.mean(0, keepdim=True)
    out = grey + (out - grey) * (1 + 0.15 * normal(1))
    at = pixel_grid(height, width) / torch.tensor([width, height]) - 0.5
    light = 1 + 0.35 * (at @ normal(2)) * 0.7
    return (out * light).clamp(0.0, 1.0)


# ---- a face's own frame, and smooth fields in it
#
# The origin is between the outer eye corners, their distance is the unit of length, x runs along them towards the picture's right in an
# upright picture, y down the face. Sizes given in this frame fit every face, scale and roll.

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
        return sample_at(photo, self.to_pixels(torch.stack([x, y], -1)))

    def edge(self, signed: Float[Tensor, "hh ww"]) -> Float[Tensor, "hh ww"]:
        """1 where a signed distance in the frame is positive, 0 where negative, with a ramp of one pixel between."""
        return (signed * self.unit + 0.5).clamp(0, 1)

    def tinted(self, color: tuple[float, float, float], photo: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 1 1"]:
        """A colour as the photo's light shows it: scaled by how bright the cheeks are, and half-way to their tint."""
        cheeks = sample_at(photo, self.to_pixels(self.points[list(CHEEKS)])[None]).mean((1, 2))
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
