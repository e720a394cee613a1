"""The two bundled portraits at rest: a smile and a pair of glasses would contradict or hide the expression that is rendered on them.

Eileen Collins smiles with her teeth bare (AU6, 12 and 25): her lips are closed along the upper one's edge, which cuts the teeth
out, and the corners of her mouth and her cheeks are let down. Grace Hopper is serious but wears glasses, which would bend with her
brows: the area of her eyes and brows is Collins's, in her own shape and tone.
"""

from functools import cache

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from portraitkit.faces import regions
from preference_data.people import synthetic, warps
from preference_data.people.expressions import LOWER_LIP, UPPER_LIP
from preference_data.people.face_frame import FaceFrame, Moves, Push, polyline

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
