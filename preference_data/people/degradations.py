"""Degradations of a good retouch, of known kind and strength: what a retoucher gets wrong, one function a kind.

`f(picture, case, strength, variant) -> picture`: `picture` is the candidate so far, `case` the photo that it is of. Strength 0 is the
honest retouch, 1 a gross fault, in between visibly graded; all sizes are in shares of the picture's side, so that a strength looks alike at
any resolution. `variant` seeds what a kind leaves open (which spots, which pattern, which way a face is bent): two candidates of one pair
share it, so that the stronger one is the same fault, only more.

`EFFECTS` says what a kind costs on which dimension, as a share of its level.
"""

import io
import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as PilImage
from skimage import measure
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from portraitkit.faces import regions
from portraitkit.pictures.images import from_pil, to_pil
from preference_data.people import warps
from preference_data.people.synthetic import Case

Picture = Float[Tensor, "3 h w"]
Mask = Float[Tensor, "1 h w"]


def _blur(picture: Float[Tensor, "c h w"], sigma: float) -> Float[Tensor, "c h w"]:
    width = 2 * int(3 * sigma + 0.5) + 1
    return gaussian_blur(picture, kernel_size=[width, width], sigma=[sigma, sigma])


def over_smoothing(picture: Picture, case: Case, strength: float, variant: int) -> Picture:
    """Plastic skin: its pores and shading blurred (Gaussian of 2.1 % of the side at strength 1); eyes, brows and lips stay sharp."""
    side = picture.shape[-1]
    blurred = _blur(picture, max((0.004 + 0.017 * strength) * side, 0.3))
    return torch.lerp(picture, blurred, min(1.0, 0.35 + 0.65 * strength) * case.skin)


def left_blemishes(picture: Picture, case: Case, strength: float, variant: int) -> Picture:
    """A share `strength` of all blemishes is still there: even variants fade every spot alike, odd ones leave whole spots and
    remove the others. A greater strength leaves all that a smaller one does."""
    even = torch.full_like(case.opacity, min(strength, 1.0))
    share = even if variant % 2 == 0 else _whole_spots(case.opacity, strength, variant)
    ratio = (case.source + 0.02) / (case.clean + 0.02)
    return (picture * torch.lerp(torch.ones_like(ratio), ratio, share)).clamp(0, 1)


def _whole_spots(opacity: Mask, strength: float, variant: int) -> Mask:
    """How much of each spot is left, 0 or 1 but for one spot, so that the opacity left is the share `strength` of all."""
    labels = np.asarray(measure.label(opacity[0].numpy() > 0, connectivity=1))
    count = int(labels.max())
    if count == 0:
        return torch.zeros_like(opacity)
    mass = np.bincount(labels.ravel(), weights=opacity[0].numpy().ravel(), minlength=count + 1)[1:]
    order = np.random.default_rng(variant).permutation(count)
    budget, left = min(strength, 1.0) * mass.sum(), np.zeros(count + 1, dtype=np.float32)
    for spot in order:
        left[spot + 1] = min(1.0, budget / mass[spot]) if mass[spot] else 0.0
        budget = max(0.0, budget - mass[spot])
    return torch.from_numpy(left[labels])[None]


def over_whitening(picture: Picture, case: Case, strength: float, variant: int) -> Picture:
    """Skin brightened and bled of its colour: at strength 1 a fifth of the way to white and half of the way to grey."""
    grey = picture.mean(0, keepdim=True)
    pale = torch.lerp(picture, grey, 0.5 * strength)
    pale = 1 - (1 - pale) * (1 - 0.22 * strength)
    return torch.lerp(picture, pale, case.skin).clamp(0, 1)


def grid(picture: Picture, case: Case, strength: float, variant: int) -> Picture:
    """The checkerboard of a decoder that upsamples badly, 3 to 5 pixels at 128 px wide, over the face."""
    side = picture.shape[-1]
    period = (3 + variant % 3) / 128 * side
    at = warps.pixel_grid(*picture.shape[-2:]) * (2 * math.pi / period)
    pattern = (at[..., 0].sin() * at[..., 1].sin())[None]
    return (picture * (1 + (0.03 + 0.19 * strength) * pattern * (0.25 + 0.75 * case.skin))).clamp(0, 1)


def blur(picture: Picture, case: Case, strength: float, variant: int) -> Picture:
    """The whole picture out of focus, Gaussian of 1 % of the side at strength 1."""
    return _blur(picture, (0.003 + 0.007 * strength) * picture.shape[-1])


def noise(picture: Picture, case: Case, strength: float, variant: int) -> Picture:
    """Grain of a high ISO over the whole picture: standard deviation .06 at strength 1, mostly luminance."""
    generator = torch.Generator().manual_seed(variant)
    height, width = picture.shape[-2:]
    grain = torch.randn(1, height, width, generator=generator) + 0.4 * torch.randn(3, height, width, generator=generator)
    return (picture + (0.004 + 0.056 * strength) * grain).clamp(0, 1)


def jpeg(picture: Picture, case: Case, strength: float, variant: int) -> Picture:
    """JPEG at quality 45 (strength 0) down to 12, chroma halved; blocks grow with the side."""
    side = picture.shape[-1]
    block = max(1, round(side / 128))
    small = to_pil(picture)
    if block > 1:
        small = small.resize((max(8, small.width // block), max(8, small.height // block)), PilImage.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=max(8, round(45 * 0.27**strength)), subsampling=2)
    coded = PilImage.open(file)
    return from_pil(coded.resize((side, picture.shape[-2]), PilImage.Resampling.BICUBIC) if block > 1 else coded)


def identity_warp(picture: Picture, case: Case, strength: float, variant: int) -> Picture:
    """Another face: jaw, cheeks, nose, eyes and mouth pushed by up to a fifth of the distance between the eyes' outer corners."""
    generator = torch.Generator().manual_seed(variant)
    points = case.mesh[:, :2]
    span = (points[33] - points[263]).norm()
    across = (points[263] - points[33]) / span
    down = torch.stack([-across[1], across[0]])
    sign = torch.where(torch.rand(5, generator=generator) < 0.5, -1.0, 1.0)
    shift = torch.zeros_like(points)
    pushes = [
        ((172, 136, 150), (397, 365, 379), across, 1.0),  # jaw, wider or narrower
        ((117, 118, 101), (346, 347, 330), across, 0.6),  # cheekbones
        ((129, 98, 64), (358, 327, 294), across, 0.9),  # nose wings
        ((33, 133, 159, 145), (263, 362, 386, 374), down, 0.55),  # eyes, higher or lower
        ((61, 0, 17), (291, 0, 17), down, 0.8),  # mouth
    ]
    for (right, left, direction, size), way in zip(pushes, sign.tolist(), strict=True):
        for side, group in ((-1.0 if direction is across else 1.0, right), (1.0, left)):
            centre = points[list(group)].mean(0)
            near = torch.exp(-(points - centre).square().sum(1, keepdim=True) / (2 * (0.16 * span) ** 2))
            shift = shift + near * direction * (side * way * size)
    push = shift * ((0.03 + 0.19 * strength) * span)
    field = warps.landmark_field(points, -push, picture.shape[-1])
    return warps.sample_at(picture, warps.pixel_grid(*picture.shape[-2:]) + field)


# ---- what retouchers get wrong: visible and plausible up to strength .75, a caricature at 1


def plastic_patches(picture: Picture, case: Case, strength: float, variant: int) -> Picture:
    """Plastic skin in patches, as a healing brush leaves it: about half of the skin flattened, pores beside it."""
    generator = torch.Generator().manual_seed(variant)
    coarse = torch.randn(1, 1, 6, 6, generator=generator)
    patches = torch.sigmoid(5 * F.interpolate(coarse, case.skin.shape[-2:], mode="bicubic", align_corners=False)[0])
    flat = _blur(picture, (0.005 + 0.006 * strength + 0.008 * strength**3) * picture.shape[-1])
    return torch.lerp(picture, flat, min(1.0, 0.4 + 0.5 * strength) * patches * case.skin)


def lost_marks(picture: Picture, case: Case, strength: float, variant: int) -> Picture:
    """Freckles and moles lifted to the skin around them, 30 % of them at strength 0, all at 1; see `has_marks`."""
    return (picture + min(1.0, 0.3 + 0.7 * strength) * _dark_spots(picture, case.skin) * case.skin).clamp(0, 1)


def _dark_spots(picture: Picture, skin: Mask) -> Picture:
    """How much darker than the skin around it a pixel is, beyond pores."""
    sigma = 0.018 * picture.shape[-1]
    return (_blur(picture * skin, sigma) / _blur(skin, sigma).clamp_min(0.05) - picture - 0.012).clamp_min(0)


def has_marks(case: Case) -> bool:
    """Whether the honest retouch has freckles or moles to lose: three dark spots or more inside the skin."""
    side = case.clean.shape[-1]
    inner = -F.max_pool2d(-case.skin, 2 * round(0.03 * side) + 1, 1, round(0.03 * side)) > 0.9  # no brow, lash or nostril is near
    dark = _blur(_dark_spots(case.clean, case.skin).mean(0, keepdim=True), 0.004 * side) / case.clean.mean(0, keepdim=True).clamp_min(0.05)
    return int(np.asarray(measure.label(((dark > 0.09) & inner)[0].numpy())).max()) >= 3


def pale_lips(picture: Picture, case: Case, strength: float, variant: int) -> Picture:
    """Lips and lipstick bled to the colour of the skin, their shading kept: 25 % at strength 0, nearly all at 1."""
    lips = regions.region_masks(case.mesh, *picture.shape[-2:], only=("lips",))["lips"]
    skin = (picture * case.skin).sum((1, 2), keepdim=True) / case.skin.sum().clamp_min(1e-6)
    bare = picture.mean(0, keepdim=True) * skin / skin.mean()
    return torch.lerp(picture, bare, min(1.0, 0.25 + 0.7 * strength) * lips).clamp(0, 1)


def white_eyes_teeth(picture: Picture, case: Case, strength: float, variant: int) -> Picture:
    """Whites of the eyes and teeth brightened to a cold white; iris, pupil and a closed mouth stay."""
    height, width = picture.shape[-2:]
    grey, out = picture.mean(0, keepdim=True), picture
    gap, span = ((case.mesh[one, :2] - case.mesh[other, :2]).norm() for one, other in ((13, 14), (33, 263)))
    for polygon in (regions.RIGHT_EYE, regions.LEFT_EYE, *((regions.LIPS_INNER,) if gap > 0.05 * span else ())):
        mask = regions.soft_polygon(case.mesh[list(polygon), :2], height, width, 0.006 * width)[None]
        inside = grey[mask > 0.5]
        if len(inside) > 4:
            low, high = inside.quantile(0.3), inside.quantile(0.95)
            bright = ((grey - low) / (high - low).clamp_min(0.02)).clamp(0, 1) * mask
            out = torch.lerp(out, torch.tensor([0.93, 0.95, 0.97]).view(3, 1, 1).expand_as(out), (0.12 + 0.6 * strength) * bright)
    return out.clamp(0, 1)


def slim_jaw(picture: Picture, case: Case, strength: float, variant: int) -> Picture:
    """A slimmer face: jaw and lower cheeks pushed inwards by up to a fifth of the distance between the eyes' outer corners."""
    points = case.mesh[:, :2]
    span = (points[33] - points[263]).norm()
    across = (points[263] - points[33]) / span
    shift = torch.zeros_like(points)
    for group, way in (((172, 136, 58), 1.0), ((397, 365, 288), -1.0)):
        distance = torch.cdist(points, points[list(group)]).amin(1, keepdim=True)
        shift = shift + way * across * torch.exp(-distance.square() / (2 * (0.15 * span) ** 2))
    field = warps.landmark_field(points, -shift * ((0.02 + 0.1 * strength + 0.08 * strength**3) * span), picture.shape[-1])
    return warps.sample_at(picture, warps.pixel_grid(*picture.shape[-2:]) + field)


def halo(picture: Picture, case: Case, strength: float, variant: int) -> Picture:
    """Bright and dark rims along every edge: local contrast (unsharp mask of 2 % of the side) by 8 % at strength 0, 88 % at 1."""
    soft = _blur(picture, 0.02 * picture.shape[-1])
    return (picture + (0.08 + 0.3 * strength + 0.5 * strength**3) * (picture - soft)).clamp(0, 1)


Degradation = Callable[[Picture, Case, float, int], Picture]
_KINDS: tuple[Degradation, ...] = (
    *(over_smoothing, plastic_patches, lost_marks, left_blemishes, over_whitening, pale_lips, white_eyes_teeth, slim_jaw),
    *(identity_warp, halo, blur, noise, grid, jpeg),
)
DEGRADATIONS: dict[str, Degradation] = {kind.__name__: kind for kind in _KINDS}
"""In the order in which they are applied: none hides one before it."""
EFFECTS: dict[str, dict[str, float]] = {
    "over_smoothing": {"skin_smoothing": 1.0, "texture": 0.5},
    "plastic_patches": {"skin_smoothing": 1.0, "texture": 0.5},
    "left_blemishes": {"blemish_removal": 1.0},
    "over_whitening": {"texture": 1.0},
    "identity_warp": {"identity": 1.0},
    "lost_marks": {"identity": 1.0},
    "pale_lips": {"identity": 1.0},
    "white_eyes_teeth": {"identity": 1.0},
    "slim_jaw": {"identity": 1.0},
    "grid": {"texture": 1.0},
    "blur": {"clarity": 1.0, "texture": 0.5},
    "halo": {"clarity": 1.0},
    "noise": {"clarity": 1.0, "texture": 0.5},
    "jpeg": {"clarity": 1.0, "texture": 0.5},
}
"""kind -> dimension -> share of the kind's level that the dimension loses, rounded down to whole levels."""
Kinds = dict[str, tuple[str, ...]]
GROSS: Kinds = {
    "skin_smoothing": ("over_smoothing",),
    "blemish_removal": ("left_blemishes",),
    "texture": ("over_whitening", "grid"),
    "clarity": ("blur", "noise", "jpeg"),
    "identity": ("identity_warp",),
}
"""dimension -> the kinds of fault of the embedded pairs, on which the embedded judge was trained, too; at the higher levels caricatures."""
RETOUCHED: Kinds = GROSS | {
    "skin_smoothing": ("over_smoothing", "plastic_patches"),
    "texture": ("over_whitening",),
    "clarity": ("blur", "halo"),
    "identity": ("lost_marks", "pale_lips", "white_eyes_teeth", "slim_jaw"),
}
"""dimension -> the kinds that retouchers make; of them `make-preferences build` makes pairs."""


def degrade(case: Case, faults: dict[str, float], variant: int) -> Picture:
    """The honest retouch of a case with several faults (kind -> strength above 0), in the order of `DEGRADATIONS`; rounded to 8 bits, as
    files are.
    """
    picture = case.clean
    for kind, function in DEGRADATIONS.items():
        if faults.get(kind, 0.0) > 0:
            picture = function(picture, case, faults[kind], variant)
    return (picture * 255).round() / 255
