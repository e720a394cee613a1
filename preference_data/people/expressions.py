"""The expression renderer: a face photo and its mesh perform facial action units.

Skin is moved by smooth fields, lids slide over the eyeballs, lips and jaw part along the line between the lips, and what opens is
painted: a dark mouth with upper teeth, sclera above the iris. Folds are hinted by soft shading. A unit is rendered on top of what the
face shows already: a person who smiles in the photo keeps smiling.

What each unit does is in `action_units.toml`. Lengths are shares of the distance between the outer eye corners; x towards the picture's
right, y down the face, both turned with the face. Sides are given for the person's right (the picture's left) and mirrored. Numbers of
units are those of the Facial Action Coding System (Ekman and Friesen); the sizes are ours, set by looking at the result.
"""

import random
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from portraitkit.faces import regions
from preference_data.people import synthetic, warps
from preference_data.people.warps import MIRROR, FaceFrame, Moves, Push, polyline, smooth_step


@dataclass(frozen=True)
class Fold:
    """A soft dark line through points (landmark, dx, dy), as a crease of the skin."""

    points: tuple[tuple[int, float, float], ...]  # of the right side; mirrored, unless `central`
    depth: float  # share of light that it takes away in its middle
    width: float = 0.012  # sigma
    central: bool = False  # the points span both sides already


@dataclass(frozen=True)
class Unit:
    """One action unit at full intensity."""

    pushes: tuple[Push, ...] = ()  # of the skin
    upper_lid: float = 0.0  # lowering of the upper lid over the eye's opening; negative raises it
    lower_lid: float = 0.0  # raising of the lower lid over the eye's opening
    lips: float = 0.0  # how far the lips part
    jaw: float = 0.0  # how far the jaw drops
    folds: tuple[Fold, ...] = ()  # creases


def _units() -> dict[int, Unit]:
    units = {}
    for number, unit in tomllib.loads(Path(__file__).with_name("action_units.toml").read_text(encoding="utf-8")).items():
        pushes = tuple(Push(*push) for push in unit.pop("pushes", ()))
        folds = tuple(Fold(tuple(tuple(point) for point in fold.pop("points")), **fold) for fold in unit.pop("folds", ()))
        units[int(number)] = Unit(pushes, folds=folds, **unit)
    return units


UNITS = _units()
COMBINATIONS = {
    "anger": ((4, 5, 7), (4, 7), (4, 7, 17), (4, 5, 7, 17), (4, 5, 7, 25)),
    "disgust": ((9,), (9, 17), (9, 15), (9, 15, 17), (4, 9, 17), (7, 9, 25)),
    "fear": ((1, 2, 4, 5, 20), (1, 2, 4, 5, 20, 25), (1, 2, 4, 5, 7, 20, 25), (1, 2, 4, 5, 20, 25, 26), (1, 2, 4, 5, 25)),
    "happiness": ((6, 12), (6, 12, 25), (12,), (12, 25), (6, 12, 25, 26)),
    "neutral": ((), (), (), (), (43,)),
    "sadness": ((1, 4, 15), (1, 4, 15, 17), (1, 15), (1, 4), (1, 4, 15, 43)),
    "surprise": ((1, 2, 5, 25, 26), (1, 2, 25, 26), (1, 2, 5), (1, 2, 5, 25)),
}
"""Emotion -> combinations of units that show it, drawn with equal chances; no two emotions share one.

Those of EMFACS and of Ekman's prototypes as far as the units are rendered: AU23 and AU24 of anger, AU10 and AU16 of disgust are not. A
jaw that drops parts the lips, so that AU26 never stands without AU25."""
INTENSITY = (0.65, 1.0)  # Of a unit that is present: below, several cannot be told from its absence at 128 px
UPPER_LIDS = ((33, 246, 161, 160, 159, 158, 157, 173, 133), (362, 398, 384, 385, 386, 387, 388, 466, 263))
LOWER_LIDS = ((33, 7, 163, 144, 145, 153, 154, 155, 133), (362, 382, 381, 380, 374, 373, 390, 249, 263))
LID = 0.11
SCLERA = (0.80, 0.78, 0.76)
UPPER_LIP = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
LOWER_LIP = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
CORNERS = (78, 308)
LIP_MIDDLES = (13, 14)
CHIN = 152
DARK, TONGUE, TEETH = (0.17, 0.05, 0.05), (0.50, 0.20, 0.20), (0.84, 0.80, 0.72)
TOOTH = 0.058
AJAR = 0.04  # A mouth open by more than this shows its own teeth
FOLD_TINT = (0.8, 1.05, 1.1)  # A crease takes less red than green and blue: light goes through skin
REACH = (1.5, 1.3, 2.1)
"""What a unit can change lies so far beside, above and below the middle of the eyes, in distances of the outer eye corners."""


def draw_expression(rng: random.Random) -> tuple[str, dict[int, float]]:
    """Draw an emotion, each equally likely, and units that show it.

    Returns:
        The emotion, and the intensities in [0, 1] by number, in ascending order.
    """
    emotion = rng.choice(list(COMBINATIONS))
    return emotion, {unit: rng.uniform(*INTENSITY) for unit in rng.choice(COMBINATIONS[emotion])}


def perform(
    photo: Float[Tensor, "3 h w"], mesh: Float[Tensor, "468 dim"], units: Mapping[int, float]
) -> tuple[Float[Tensor, "3 h w"], Float[Tensor, "468 dim"]]:
    """The photo and the mesh of a face that performs action units, given as intensities in [0, 1] by number, of `UNITS`; both as they are
    where none is above 0. 26 alone parts the lips too, so that a label says 25 as well. What follows x and y of a landmark is passed
    through.

    Raises:
        ValueError: a unit that is not rendered, or an intensity outside [0, 1].
    """
    for number, intensity in units.items():
        if number not in UNITS or not 0 <= intensity <= 1:
            raise ValueError(f"AU{number} at {intensity}: must be one of {', '.join(map(str, UNITS))}, at an intensity in [0, 1]")
    units = {number: intensity for number, intensity in units.items() if intensity > 0}
    (beside, above, below), photo_size = REACH, torch.tensor([photo.shape[2], photo.shape[1]])
    corners = torch.tensor([[-beside, -above], [beside, -above], [beside, below], [-beside, below]])
    corners = FaceFrame.of(mesh[:, :2]).to_pixels(corners)  # a large photo is not worked through for a small face in it
    x0, y0 = corners.amin(0).floor().long().clamp_min(0).tolist()
    x1, y1 = torch.minimum(corners.amax(0).ceil().long(), photo_size).tolist()
    if not units or x0 >= x1 or y0 >= y1:
        return photo, mesh
    corner = torch.tensor([x0, y0])
    part, points = _perform_here(photo[:, y0:y1, x0:x1], mesh[:, :2] - corner, units)
    out = photo.clone()
    out[:, y0:y1, x0:x1] = part
    return out, torch.cat([points + corner, mesh[:, 2:]], 1)


def _perform_here(photo: Tensor, mesh: Tensor, units: Mapping[int, float]) -> tuple[Tensor, Tensor]:
    face = FaceFrame.of(mesh)
    pushes = []
    for number, a in units.items():
        for push in UNITS[number].pushes:  # AU4 draws brows together that AU1 or AU2 raises, but hardly lowers them
            raised = units.get(1 if push.at == 55 else 2, 0.0) if number == 4 else 0.0
            pushes.append((replace(push, dy=push.dy * (1 - 0.6 * raised)), a))
    moves = Moves.of(face, pushes)
    height, width = photo.shape[1:]
    at = moves.undo(face.to_frame(warps.pixel_grid(height, width)))
    lower, lift = _lids(units)
    opening = MouthOpening(face, lips=sum(UNITS[n].lips * a for n, a in units.items()), jaw=sum(UNITS[n].jaw * a for n, a in units.items()))
    out = open_mouth(slide_lids(photo, at, face, lower=lower, lift=lift), photo, at, opening)
    tint = torch.tensor(FOLD_TINT).view(3, 1, 1)
    for number, intensity in units.items():
        for fold in UNITS[number].folds:
            out = out * (1 - tint * (fold.depth * intensity) * _closeness(face, fold, at))
    points = opening.move(slide_lid_points(face, lower=lower, lift=lift))
    return out.clamp(0, 1), face.to_pixels(points + moves(points))


def _lids(units: Mapping[int, float]) -> tuple[float, float]:
    """How far the upper lids come down and the lower ones rise, over the eye's opening; together at most 1.

    Where both AU5 and AU7 act, the upper lid is up and only the lower one tightens.
    """
    lower = min(1.0, sum(UNITS[n].upper_lid * a for n, a in units.items() if not (n == 7 and 5 in units)))
    lift = sum(UNITS[n].lower_lid * a for n, a in units.items())
    return lower, min(lift, 1 - lower, 0.6)


def _closeness(face: FaceFrame, fold: Fold, at: Float[Tensor, "h w 2"]) -> Float[Tensor, "h w"]:
    """`exp(-d^2 / 2 width^2)` of the distance d to a fold, on both sides unless it is central; fainter towards its ends."""
    lines = [[face.points[i] + torch.tensor([dx, dy]) for i, dx, dy in fold.points]]
    if not fold.central:
        lines.append([face.points[MIRROR.get(i, i)] + torch.tensor([-dx, dy]) for i, dx, dy in fold.points])
    width = max(fold.width, 0.6 * face.pixel)
    value = at.new_zeros(at.shape[:2])
    for line in lines:
        for k, (a, b) in enumerate(zip(line[:-1], line[1:], strict=True)):
            along = (((at - a) @ (b - a)) / (b - a).square().sum()).clamp(0, 1)
            distance = (at - a - along[..., None] * (b - a)).square().sum(-1)
            whole = (k + along) / (len(line) - 1)
            value = torch.maximum(value, (0.35 + 2.6 * whole * (1 - whole)) * torch.exp(-distance / (2 * width**2)))
    return value


def slide_lids(
    photo: Float[Tensor, "3 h w"], at: Float[Tensor, "h w 2"], face: FaceFrame, *, lower: float, lift: float
) -> Float[Tensor, "3 h w"]:
    """The photo, RGB in [0, 1], read at points of the face's frame, with other lids. Over the eye's opening, the upper lid comes down by
    `lower` (negative: it rises) and the lower lid rises by `lift`; together at most 1, where the eye is closed.
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


class MouthOpening:
    """How far each point of a face moves down when its mouth opens. Everything is in the face's frame.

    The line that parts is the upper edge of the lower lip: a mouth that is open already opens further. The lower lip goes down by `lips`
    alone, while the chin stays, and by `jaw` together with chin and lower cheeks.
    """

    def __init__(self, face: FaceFrame, *, lips: float, jaw: float) -> None:
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
    """Part the lips of a picture that was read at points of the face's frame; returns it with the mouth's inside painted and everything
    below it, which is read from the photo, moved down.
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


# ---- the two bundled portraits at rest: a smile and a pair of glasses would contradict or hide the expression that is rendered on them
#
# Eileen Collins smiles with her teeth bare (AU6, 12 and 25): her lips are closed along the upper one's edge, which cuts the teeth out, and
# the corners of her mouth and her cheeks are let down. Grace Hopper is serious but wears glasses, which would bend with her brows: the area
# of her eyes and brows is Collins's, in her own shape and tone.

RELAX = (
    Push(61, 0.07, 0.062, 0.13, 0.12),
    Push(205, 0.01, 0.03, 0.14, 0.12),
    Push(0, 0.0, -0.030, 0.13, 0.045),
    Push(17, 0.0, 0.020, 0.14, 0.05),
)
"""What undoes Collins's smile once her lips are closed."""
SEAM = (0.45, 0.22, 0.20)
EYES_AND_GLASSES = (
    127, 162, 71, 63, 105, 66, 107, 9, 336, 296, 334, 293, 301, 389, 356, 454, 411, 425, 266, 360, 281, 5, 51, 131, 36, 205, 187, 234,
)  # fmt: skip


@cache
def calm_stage() -> synthetic.Faces:
    """Both portraits on the stage of `synthetic.make_person`, at rest, with their landmarks."""
    images, meshes = synthetic.stage()
    collins, collins_mesh = _close_mouth(images[0], meshes[0])
    face = FaceFrame.of(collins_mesh)
    moves = Moves.of(face, [(push, 1.0) for push in RELAX])
    grid = face.to_frame(warps.pixel_grid(synthetic.STAGE, synthetic.STAGE))
    collins = warps.sample_at(collins, face.to_pixels(moves.undo(grid)))
    collins_mesh = face.to_pixels(face.points + moves(face.points))
    hopper = _eyes_of(collins, collins_mesh, images[1], meshes[1])
    return torch.stack([collins, hopper]), torch.stack([collins_mesh, meshes[1]])


def _close_mouth(image: Tensor, mesh: Tensor) -> tuple[Tensor, Tensor]:
    """The lower lip is brought up to the upper one; what was between them is gone, and a soft line is left."""
    face = FaceFrame.of(mesh)
    upper_lip, lower_lip = face.points[list(UPPER_LIP)], face.points[list(LOWER_LIP)]
    x, y = face.to_frame(warps.pixel_grid(image.shape[1], image.shape[2])).unbind(-1)
    upper = polyline(upper_lip, x)
    gap = (polyline(lower_lip, x) - upper).clamp_min(0)
    fade = torch.exp(-((y - upper).clamp_min(0) / 0.30).square())
    closed = torch.lerp(face.sample(image, x, y), face.sample(image, x, y + gap * fade), face.edge(y - upper))
    seam = torch.exp(-((y - upper) / 0.012).square() / 2) * (gap / gap.max()).sqrt()
    closed = torch.lerp(closed, torch.tensor(SEAM).view(3, 1, 1), 0.7 * seam)
    x, y = face.points.unbind(-1)
    low = polyline(lower_lip, x)
    gap = (low - polyline(upper_lip, x)).clamp_min(0)
    lift = gap * torch.exp(-((y - low).clamp_min(0) / 0.35).square()) * (y > low - gap / 2)
    lift[list(UPPER_LIP)] = 0.0
    return closed, face.to_pixels(torch.stack([x, y - lift], -1))


def _eyes_of(donor: Tensor, donor_mesh: Tensor, image: Tensor, mesh: Tensor) -> Tensor:
    """`image` with the donor's eyes and brows in its own shape, and in the tone of its own cheeks and forehead."""
    size = image.shape[-1]
    grid = warps.pixel_grid(size, size)
    warped = warps.sample_at(donor, grid + warps.landmark_field(mesh, donor_mesh - mesh, size, reach=0.035, nodes=64))
    outline = mesh[list(EYES_AND_GLASSES)]
    outline = outline.mean(0) + (outline - outline.mean(0)) * torch.tensor([1.05, 1.0])
    mask = regions.soft_polygon(outline, size, size, 2.0)[None]
    skin = regions.region_masks(mesh, size, size, only=("skin",))["skin"] * (1 - mask)
    share = skin / skin.sum()
    tone = ((image * share).sum((1, 2)) / (warped * share).sum((1, 2))).view(3, 1, 1)
    return torch.lerp(image, (warped * tone).clamp(0, 1), gaussian_blur(mask, [7, 7], [1.5, 1.5]))
