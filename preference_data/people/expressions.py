"""The expression renderer: a face photo and its mesh perform facial action units.

Skin is moved by smooth fields, lids slide over the eyeballs, lips and jaw part along the line between the lips, and what opens is
painted: a dark mouth with upper teeth, sclera above the iris. Folds are hinted by soft shading. A unit is rendered on top of what the
face shows already: whoever smiles in the photo goes on smiling.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from preference_data.people import warps
from preference_data.people.action_units import UNITS, Fold
from preference_data.people.eyelids import slide_lid_points, slide_lids
from preference_data.people.face_frame import MIRROR, FaceFrame, Moves, Push
from preference_data.people.open_mouth import MouthOpening, open_mouth

FOLD_TINT = (0.8, 1.05, 1.1)
"""A crease takes less red than green and blue: light goes through skin."""
REACH = (1.5, 1.3, 2.1)
"""What a unit can change lies so far beside, above and below the middle of the eyes, in distances of the outer eye corners."""


def perform(
    photo: Float[Tensor, "3 h w"], mesh: Float[Tensor, "468 dim"], units: Mapping[int, float]
) -> tuple[Float[Tensor, "3 h w"], Float[Tensor, "468 dim"]]:
    """Let a face perform action units.

    Args:
        photo: RGB, [0, 1].
        mesh: 468 landmarks in pixels; what follows x and y (depth) is passed through.
        units: intensity in [0, 1] by number, of `UNITS`. 26 alone parts the lips too, so that a label says 25 as well.

    Returns:
        The photo and the mesh with the expression. No unit above 0: both as they are.

    Raises:
        ValueError: a unit that is not rendered, or an intensity outside [0, 1].
    """
    for number, intensity in units.items():
        if number not in UNITS or not 0 <= intensity <= 1:
            raise ValueError(f"AU{number} at {intensity}: must be one of {', '.join(map(str, UNITS))}, at an intensity in [0, 1]")
    units = {number: intensity for number, intensity in units.items() if intensity > 0}
    x0, y0, x1, y1 = _box(photo, mesh)
    if not units or x0 >= x1 or y0 >= y1:
        return photo, mesh
    corner = torch.tensor([x0, y0])
    part, points = _perform_here(photo[:, y0:y1, x0:x1], mesh[:, :2] - corner, units)
    out = photo.clone()
    out[:, y0:y1, x0:x1] = part
    return out, torch.cat([points + corner, mesh[:, 2:]], 1)


def _box(photo: Tensor, mesh: Tensor) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of what can change; a large photo is not worked through for a small face in it."""
    face, (beside, above, below) = FaceFrame.of(mesh[:, :2]), REACH
    corners = face.to_pixels(torch.tensor([[-beside, -above], [beside, -above], [beside, below], [-beside, below]]))
    x0, y0 = corners.amin(0).floor().long().clamp_min(0).tolist()
    x1, y1 = torch.minimum(corners.amax(0).ceil().long(), torch.tensor([photo.shape[2], photo.shape[1]])).tolist()
    return x0, y0, x1, y1


def _perform_here(photo: Tensor, mesh: Tensor, units: Mapping[int, float]) -> tuple[Tensor, Tensor]:
    face = FaceFrame.of(mesh)
    moves = Moves.of(face, [(_beside(push, number, units), a) for number, a in units.items() for push in UNITS[number].pushes])
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


def _beside(push: Push, number: int, units: Mapping[int, float]) -> Push:
    """A unit's push beside other units: AU4 draws brows together that AU1 or AU2 raises, but hardly lowers them."""
    if number != 4:
        return push
    return replace(push, dy=push.dy * (1 - 0.6 * units.get(1 if push.at == 55 else 2, 0.0)))


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
