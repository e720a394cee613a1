"""Soft masks of facial regions, drawn from the mesh.

Each region is one or more polygons in MediaPipe's canonical numbering. A mask's edge falls off as if the polygon had
been blurred by a small gaussian. The oval ends where the mesh ends: a fringe
below the hairline and the front of an ear lobe may be inside it, the neck is not.
"""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149,
    150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
LIPS_OUTER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
LIPS_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)
RIGHT_EYE = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
LEFT_EYE = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)
RIGHT_BROW = (70, 63, 105, 66, 107, 55, 65, 52, 53, 46)
LEFT_BROW = (300, 293, 334, 296, 336, 285, 295, 282, 283, 276)
RIGHT_EYELID = (33, 246, 161, 160, 159, 158, 157, 173, 133, 190, 189, 221, 222, 223, 224, 225, 113, 226)
LEFT_EYELID = (263, 466, 388, 387, 386, 385, 384, 398, 362, 414, 413, 441, 442, 443, 444, 445, 342, 446)
RIGHT_CHEEK = (117, 118, 101, 36, 206, 207, 187, 123)
LEFT_CHEEK = (346, 347, 330, 266, 426, 427, 411, 352)
RIGHT_NOSTRIL = (219, 218, 79, 239, 238, 20, 60, 75, 240, 235)
LEFT_NOSTRIL = (439, 438, 309, 459, 458, 250, 290, 305, 460, 455)

PARTS = {
    "face_oval": (OVAL,),
    "eyes": (RIGHT_EYE, LEFT_EYE),
    "brows": (RIGHT_BROW, LEFT_BROW),
    "nostrils": (RIGHT_NOSTRIL, LEFT_NOSTRIL),
    "mouth": (LIPS_OUTER,),
    "opening": (LIPS_INNER,),
    "cheeks": (RIGHT_CHEEK, LEFT_CHEEK),
    "lids": (RIGHT_EYELID, LEFT_EYELID),
}
REGIONS = ("skin", "lips", "cheeks", "eyelids", "eyes", "brows", "face_oval")
MIN_SIGMA = 0.5


def soft_polygon(
    points: Float[Tensor, "n 2"], height: int, width: int, sigma: float, device: torch.device | None = None
) -> Float[Tensor, "h w"]:
    """Draw a filled polygon with soft edges and slightly rounded corners; returns the mask, in [0, 1].

    The value at a pixel is the normal distribution function of its signed distance to the outline over `sigma` (in pixels): .5 on
    the outline, and along a straight edge exactly what a gaussian blur of the hard mask would give. The corners `points` are in pixels, in
    order; the polygon closes itself.
    """
    mask = torch.zeros(height, width, dtype=points.dtype, device=device or points.device)
    reach = 4 * sigma
    x0, y0 = (points.amin(0) - reach).floor().long().tolist()
    x1, y1 = (points.amax(0) + reach).ceil().long().tolist()
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if x0 >= x1 or y0 >= y1:
        return mask
    y = torch.arange(y0, y1, dtype=mask.dtype, device=mask.device) + 0.5
    x = torch.arange(x0, x1, dtype=mask.dtype, device=mask.device) + 0.5
    mask[y0:y1, x0:x1] = torch.special.ndtr(signed_distance(points, y, x) / sigma)
    return mask


def signed_distance(points: Float[Tensor, "n 2"], y: Float[Tensor, " h"], x: Float[Tensor, " w"]) -> Float[Tensor, "h w"]:
    """Distance to the outline of a polygon at rows `y` and columns `x`, in pixels, positive inside (even-odd rule).

    The corners `points` are in order; the polygon closes itself.
    """
    y, x = y[:, None], x[None]
    nearest = torch.full_like(y + x, torch.inf)
    inside = torch.zeros_like(nearest, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(points.tolist(), points.roll(-1, 0).tolist(), strict=True):
        dx, dy, right, below = bx - ax, by - ay, x - ax, y - ay
        along = (right * dx + below * dy).div_(max(dx * dx + dy * dy, 1e-12)).clamp_(0, 1)
        torch.minimum(nearest, (right - along * dx).square_().add_((below - along * dy).square_()), out=nearest)
        if dy:  # does a ray to the right cross this edge?
            inside ^= ((ay > y) != (by > y)) & (x < ax + below * (dx / dy))
    return torch.where(inside, nearest.sqrt(), -nearest.sqrt())


def region_masks(
    mesh: Float[Tensor, "468 dim"], height: int, width: int, *, softness: float = 0.015, only: tuple[str, ...] = REGIONS
) -> dict[str, Float[Tensor, "1 h w"]]:
    """Draw the masks of all regions, or of `only` some, to save the time of the others; of the mesh only x and y are used.

    Masks are in [0, 1]. "face_oval"; "eyes", without the lids; "brows"; "lips", without teeth and mouth opening; "eyelids", from the lash
    line to just below the brow; "cheeks", where blush goes; "skin": the oval without eyes, brows, lips, mouth opening and nostrils.
    `softness` is the sigma of the edges over the distance between the outer eye corners; at least half a pixel.
    """
    points = mesh.detach()[:, :2].cpu()  # at once: its numbers are looked at one by one
    sigma = max(softness * (points[33] - points[263]).norm().item(), MIN_SIGMA)

    @cache
    def get(name: str) -> Tensor:
        parts = [soft_polygon(points[list(part)], height, width, sigma, mesh.device) for part in PARTS[name]]
        return torch.stack(parts).amax(0, keepdim=True)

    recipes = {
        "skin": lambda: get("face_oval") * (1 - get("eyes")) * (1 - get("brows")) * (1 - get("mouth")) * (1 - get("nostrils")),
        "lips": lambda: get("mouth") * (1 - get("opening")),
        "eyelids": lambda: get("lids") * (1 - get("eyes")),
    }
    return {name: recipes[name]() if name in recipes else get(name) for name in REGIONS if name in only}
