"""Where makeup goes: shapes over the 468-point mesh, and the soft masks that they draw.

A shape has four parameters, each 0 to 255, named as the published renderer names them. That renderer is private; this is our
reading of the names:

    alpha   opacity where the mask is 1: 0 leaves the face as it is, 255 hides the skin's colour (not its shading)
    sigma   softness of the edge: the standard deviation of the blur that the edge looks like, as a share of `EDGE` of the
            region; 0 is as sharp as pixels allow
    gamma   gloss of lips, shimmer of powder: 0 is matt, 255 has the strongest highlights
    split   0: the region is in one piece. Above 0 it is parted at split / 255 of the way from its root (the parting line of
            the lips, the lash line, the middle of the cheek) to its rim, and only one side takes the product: the root's
            side, or the rim's where the shape says so. The parting is as soft as `sigma` says

All lengths follow the face: the unit is the distance between the outer eye corners (or what it would be from the front).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from portraitkit.faces.regions import LEFT_EYE, LIPS_INNER, LIPS_OUTER, OVAL, RIGHT_EYE, signed_distance
from preference_data.makeup_prompts import TABLES
from preference_data.people.warps import MIRROR

Points = tuple[int, ...]
Segment = tuple[int, int]


@dataclass(frozen=True)
class Patch:
    """One outline on the mesh."""

    outline: Points  # mesh points in order; closes itself
    root: Points = ()  # the line that `split` is measured from; empty: the patch's middle
    shine: tuple[Segment, ...] = ()  # lines between two mesh points along which gloss lies


@dataclass(frozen=True)
class Shape:
    """A kind of makeup: its region, parameters (0 to 255, see the module) and outlines."""

    region: str
    alpha: int
    sigma: int
    gamma: int
    split: int
    patches: tuple[Patch, ...]
    rim_side: bool = False


@dataclass(frozen=True)
class Drawn:
    """What a shape covers in one picture."""

    top: int  # first row of the window
    left: int  # first column of the window
    mask: Float[Tensor, "h w"]  # share of the full opacity in [0, 1]; exactly 0 outside the shape
    shine: Float[Tensor, "h w"]  # strength of the gloss in [0, 1]


REGIONS = ("blush", "eyeshadow", "lips")  # in the order in which they are put on
EDGE = {"lips": 0.06, "blush": 0.20, "eyeshadow": 0.13}  # sigma 255, in units of the eye distance
GUARD = 0.012  # over this distance makeup fades in beside what it must not touch
SHINE = {"lips": 0.014, "blush": 0.04, "eyeshadow": 0.03}  # width of the shine lines
REACH = 3.1  # standard deviations after which a mask is 0

_KEPT_OFF = {"lips": (LIPS_INNER,), "blush": (RIGHT_EYE, LEFT_EYE, LIPS_OUTER), "eyeshadow": (RIGHT_EYE, LEFT_EYE)}


def _patches(outline: list[int], root: Sequence[int] = (), shine: Sequence[Sequence[int]] = (), central: bool = False) -> tuple[Patch, ...]:
    """A patch on both sides of the face: it is central, or one of the right half with its mirror image."""

    def patch(place_of: Callable[[int], int]) -> Patch:
        return Patch(tuple(map(place_of, outline)), tuple(map(place_of, root)), tuple((place_of(a), place_of(b)) for a, b in shine))

    right, left = patch(lambda point: point), patch(lambda point: MIRROR.get(point, point))
    return (right,) if central else (right, left)


_PATCHES = {name: _patches(**patch) for name, patch in TABLES["patches"].items()}
SHAPES = {name: Shape(**shape | {"patches": _PATCHES[shape["patches"]]}) for name, shape in TABLES["shapes"].items()}
"""Every shape by name. LIP_FULL_BASIC, BLUSHER_CENTER_WIDE_BASIC and EYESHADOW_OVEREYE_FULL_BASIC have the published parameters."""


def face_scale(points: Float[Tensor, "468 2"]) -> float:
    """The unit of length in pixels: the distance between the outer eye corners, as it would be from the front."""
    return float(torch.maximum((points[33] - points[263]).norm(), (points[10] - points[152]).norm() / 1.665))


def draw_shape(shape: Shape, mesh: Float[Tensor, "468 dim"], height: int, width: int, *, sigma: int, split: int) -> Drawn | None:
    """Draw what a shape covers in a picture of `height` x `width`; None where that is nothing.

    Lips leave out the mouth's opening and the teeth, every shape leaves out the eyes, blush also the lips and whatever lies
    outside the face's oval: there the mask is exactly 0. Of the `mesh`, in pixels of the picture, x and y are used; `sigma` and `split`, 0
    to 255, stand in place of the shape's own.
    """
    points = mesh.detach()[:, :2].float()
    unit = face_scale(points)
    edge = max(sigma / 255 * EDGE[shape.region] * unit, 0.35)
    used = points[sorted({point for patch in shape.patches for point in patch.outline})]
    low, high = (used.amin(0) - REACH * edge).floor().long().tolist(), (used.amax(0) + REACH * edge).ceil().long().tolist()
    left, top, right, bottom = max(low[0], 0), max(low[1], 0), min(high[0], width), min(high[1], height)
    if left >= right or top >= bottom:
        return None
    y = torch.arange(top, bottom, device=points.device) + 0.5
    x = torch.arange(left, right, device=points.device) + 0.5
    mask = torch.zeros(len(y), len(x), device=points.device)
    shine = torch.zeros_like(mask)
    for patch in shape.patches:
        at = _around(points[list(patch.outline)], REACH * edge, y, x)
        mask[at] = torch.maximum(mask[at], _draw_patch(patch, points, y[at[0]], x[at[1]], edge, unit, sigma, split, shape.rim_side))
        for a, b in patch.shine:
            width_of_line = SHINE[shape.region] * unit
            at = _around(points[[a, b]], 3 * width_of_line, y, x)
            distance = _distance(points[[a, b]], y[at[0]], x[at[1]]) / width_of_line
            shine[at] = torch.maximum(shine[at], torch.exp(-distance.square() / 2))
    fade = max(GUARD * unit, 0.5)
    for outline in _KEPT_OFF[shape.region]:
        at = _around(points[list(outline)], fade, y, x)
        mask[at] *= (-signed_distance(points[list(outline)], y[at[0]], x[at[1]]) / fade).clamp(0, 1)  # 0 inside it and on it
    if shape.region == "blush":
        mask *= (signed_distance(points[list(OVAL)], y, x) / (0.1 * unit)).clamp(0, 1)
    return Drawn(top, left, torch.where(mask < 1e-3, 0.0, mask), shine)


def _draw_patch(
    patch: Patch, points: Tensor, y: Tensor, x: Tensor, edge: float, unit: float, sigma: int, split: int, rim_side: bool
) -> Float[Tensor, "h w"]:
    outline = smooth_outline(points[list(patch.outline)], unit)
    signed = signed_distance(outline, y, x)
    mask = torch.special.ndtr(signed / edge)
    mask = torch.where(signed < -REACH * edge, 0.0, mask)
    if split:
        if patch.root:  # the rim is the part of the outline that is not the root; the whole outline, closed, where they do not touch
            rim = [point for point in patch.outline if point not in patch.root]
            rim += rim[:1] if len(rim) == len(patch.outline) else []
            from_root, to_rim = (_distance(points[list(line)], y, x) for line in (patch.root, rim))
        else:
            from_root, to_rim = _distance(outline.mean(0).expand(2, -1), y, x), signed.clamp_min(0)
        along = from_root / (from_root + to_rim).clamp_min(1e-6)
        side = (split / 255 - along) / (0.04 + 0.3 * sigma / 255)
        mask = mask * torch.special.ndtr(-side if rim_side else side)
    return mask


def _around(points: Float[Tensor, "n 2"], margin: float, y: Float[Tensor, " h"], x: Float[Tensor, " w"]) -> tuple[slice, slice]:
    """Which rows and columns of the window lie within `margin` pixels of the box around some points."""
    low, high = (points.amin(0) - margin).tolist(), (points.amax(0) + margin).tolist()
    spans: list[slice] = []
    for axis, centres in ((1, y), (0, x)):
        first = float(centres[0])
        start = min(max(int(low[axis] - first), 0), len(centres))
        spans.append(slice(start, max(min(int(high[axis] - first) + 2, len(centres)), start)))
    return spans[0], spans[1]


def smooth_outline(points: Float[Tensor, "n 2"], unit: float) -> Float[Tensor, "m 2"]:
    """A closed Catmull-Rom spline through the points, as fine as pictures of this size show."""
    steps = min(max(round(unit / 60), 1), 5)
    if steps == 1:
        return points
    t = (torch.arange(steps, device=points.device) / steps).view(1, -1, 1)
    p0, p1, p2, p3 = (points.roll(shift, 0)[:, None] for shift in (1, 0, -1, -2))
    return (p1 + t / 2 * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))).flatten(0, 1)


def _distance(line: Float[Tensor, "n 2"], y: Float[Tensor, " h"], x: Float[Tensor, " w"]) -> Float[Tensor, "h w"]:
    """Distance to an open polyline in pixels."""
    a, along = line[:-1], line[1:] - line[:-1]
    length = along.square().sum(1).clamp_min(1e-12)
    rows = max(2_000_000 // max(len(a) * len(x), 1), 1)
    parts: list[Tensor] = []
    for part in y.split(rows):  # a few rows at a time: memory stays small in large photos
        dx, dy = x[None, :, None] - a[:, 0], part[:, None, None] - a[:, 1]  # (1, w, n), (rows, 1, n)
        t = ((dx * along[:, 0] + dy * along[:, 1]) / length).clamp(0, 1)
        parts.append(((dx - t * along[:, 0]).square() + (dy - t * along[:, 1]).square()).amin(-1))
    return torch.cat(parts).sqrt()


def shapes_of(region: str) -> Sequence[str]:
    """Names of a region's shapes, the published one first."""
    return [name for name, shape in SHAPES.items() if shape.region == region]
