"""One pass of the retoucher, taken apart so that it can be put together with any strengths: `split_edit`, then `combine`.

Everything happens in CIELAB on an aligned crop of the face. A spot is filled from the skin around it; tone is all that is broader than a
spot; texture is what lies between a spot and a pore. Finer detail than `PORE` belongs to none of them and stays as the photo has it. The
retoucher's change (its answer less the photo) is sorted into these three, and each is completed by what the retoucher has left to do: an
editor that does all of it adds all, one that does little (as the embedded one) adds little. Lengths are in pixels of a crop of 128.

A spot itself is a round patch that is darker or redder than the skin around it. Blobs are sought at four sizes, as the maxima of a
difference of Gaussians; those that are drawn out, as wrinkles and hairs are, are dropped by the ratio of the curvatures at the maximum
(Lowe 2004, section 4.1). What tells a mole or a freckle from a blemish is colour alone: pigment takes red light away, too, inflammation
hardly any.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import max_pool2d

from policies.retoucher.retouch.options import Controls
from portraitkit.faces.regions import region_masks
from portraitkit.pictures.images import lab_to_srgb, srgb_to_lab
from reward_models.filters import blur, blur_inside

# ---- spots: where they are, how large, and whether one is a mole or a blemish

SIZES = (0.55, 0.9, 1.4, 2.0)
"""Gaussians that spots are sought with, in pixels of a face crop of 128."""
CONTRAST = 3.0
"""Smallest difference of a spot of size 1 to the skin around it, in CIELAB units, and in robust standard deviations over the skin; it
grows with larger ones, which shadows resemble."""
ROUND = 2.5
"""Largest ratio of the curvatures along and across a spot."""
CRISP = 0.65
"""Smallest share of a spot's contrast that the next smaller Gaussian sees; shadows, which have no edge, show it less."""
TAKES_RED = 0.5
"""A mole or freckle takes at least this share of red light for what it takes of green, both as logarithms of its colour over that of the
skin around it: whatever the skin's own colour, it falls out."""
LOSES_COLOUR = -0.5
"""Change of a* and b* together below which a dark patch is no pigment but a shadow or stubble."""


@dataclass(frozen=True)
class Spot:
    """One spot; lengths in pixels of the crop or picture that it is given for."""

    x: float  # of its centre
    y: float
    radius: float
    kind: Literal["blemish", "mole"]  # by the light that it takes, see `TAKES_RED`


HAIRY = 4.0
"""How many times as much fine detail as the face's skin has in the middle hair, stubble and glasses have."""
DARK = 0.5
"""Share of the skin's middle lightness below which hair, glasses and nostrils lie."""


def open_skin(lab: Float[Tensor, "3 size size"], mesh: Float[Tensor, "468 dim"]) -> Float[Tensor, "1 size size"]:
    """Where an aligned face crop shows skin that nothing covers, in [0, 1]: the face's oval without eyes, lids, brows, lips and nostrils,
    and without hair, stubble and glasses, which have more fine detail than skin or are much darker. The crop is in CIELAB."""
    size, unit = lab.shape[-1], lab.shape[-1] / 128
    masks = region_masks(mesh, size, size, only=("skin", "eyelids", "eyes", "lips"))
    near = torch.cat([masks[name] for name in ("eyelids", "eyes", "lips")]).amax(0)[None, None]
    skin = masks["skin"][None] * (1 - (2 * blur((near > 0.02).to(lab), 1.5 * unit)).clamp(0, 1))
    inside = skin > 0.9
    if not inside.any():
        return skin[0]
    lightness = lab[None, :1]
    detail = blur((lightness - blur(lightness, 0.6 * unit)).square(), 2 * unit)
    hairy = detail / detail[inside].median().clamp_min(1e-3) / HAIRY
    bright = blur(lightness, 0.6 * unit) / lightness[inside].median() / DARK
    plain = (2 - hairy).clamp(0, 1) * ((bright - 1) * 4).clamp(0, 1)
    return (skin * blur(plain, unit))[0]


def find_spots(
    lab: Float[Tensor, "3 size size"], skin: Bool[Tensor, "1 size size"]
) -> tuple[list[Spot], Int[Tensor, "size size"], Float[Tensor, "1 1 size size"]]:
    """The spots of an aligned face crop in CIELAB, strongest first, and which pixels are theirs. They lie on `skin`; a spot's centre keeps
    off the edge of it by its own size.

    Returns:
        Spots in pixels of the crop; the number of the spot that a pixel belongs to, -1 where there is none; and how far it does, in
        [0, 1], soft at the edges.
    """
    unit, inside = lab.shape[-1] / 128, skin[None].to(lab)
    off = 1 - inside
    found: list[tuple[float, int, int, float]] = []
    standing: dict[float, Tensor] = {}
    for size, smaller in zip(SIZES, (None, *SIZES), strict=False):
        sigma = size * unit
        differs = blur_inside(lab[None], inside, 3.5 * sigma) - blur_inside(lab[None], inside, sigma)
        standing[size] = response = differs[:, :1].clamp_min(0).hypot(differs[:, 1:2].clamp_max(0))
        values = response[skin[None]]
        if not len(values):
            break
        spread = 1.4826 * (values - values.median()).abs().median()
        least = max(CONTRAST, float(values.median() + CONTRAST * spread)) * max(size, 1)
        reach = 2 * round(sigma) + 1
        peaks = (response == max_pool2d(response, reach, 1, reach // 2)) & (response > least)
        peaks &= (max_pool2d(off, 2 * round(2 * sigma) + 1, 1, round(2 * sigma)) == 0) & _is_round(response, max(round(sigma), 1))
        if smaller is not None:
            peaks &= standing[smaller] >= CRISP * response
        for _, _, y, x in peaks.nonzero().tolist():
            found.append((float(response[0, 0, y, x]), y, x, size))
    spots: list[Spot] = []
    owner, colours = torch.full(lab.shape[1:], -1, device=lab.device), lab_to_srgb(lab)
    taken = torch.zeros_like(inside[0, 0])
    for _, y, x, size in sorted(found, reverse=True):
        if taken[y, x] > 0.3:
            continue
        # its opacity: what stands out at least a fifth as much as its middle, no further from it than three sigma
        shares = standing[size][0, 0] / standing[size][0, 0, y, x]
        shape = ((shares - 0.1) / 0.2).clamp(0, 1) * _disc(shares, y, x, 2.4 * (size * unit)) * inside[0, 0]
        ring = (_disc(shape, y, x, 4.5 * size * unit) > 0.5) & (_disc(shape, y, x, 2.8 * size * unit) < 0.5) & skin[0]
        if not ring.any():
            continue
        middle = shape > 0.5
        differs = (lab - lab[:, ring].median(1).values[:, None, None])[:, middle]
        strength = (-differs[0]).clamp_min(0) + differs[1].clamp_min(0)
        darkest = strength.topk(max(len(strength) // 3, 1)).indices  # the middle of a spot, wherever it lies
        lighter, redder, yellower = differs[:, darkest].mean(1).tolist()
        if lighter >= 0 or redder + yellower < LOSES_COLOUR:  # a flush or a highlight; a shadow or stubble
            continue
        owner[shape > taken] = len(spots)
        taken = torch.maximum(taken, shape)
        core, around = colours[:, middle][:, darkest].mean(1), colours[:, ring].median(1).values
        red, green, _ = (around.clamp_min(1e-3) / core.clamp_min(1e-3)).log().tolist()
        spots.append(Spot(x + 0.5, y + 0.5, 2 * size * unit, "mole" if red >= TAKES_RED * max(green, 1e-3) else "blemish"))
    return spots, owner, taken[None, None]


def _is_round(response: Float[Tensor, "1 1 h w"], step: int) -> Bool[Tensor, "1 1 h w"]:
    """Where a maximum's curvatures differ by a factor of `ROUND` at most."""

    def moved(dy: int, dx: int) -> Tensor:
        return response.roll((dy * step, dx * step), (2, 3))

    across = moved(0, 1) + moved(0, -1) - 2 * response
    along = moved(1, 0) + moved(-1, 0) - 2 * response
    mixed = (moved(1, 1) + moved(-1, -1) - moved(1, -1) - moved(-1, 1)) / 4
    determinant = across * along - mixed.square()
    return (determinant > 0) & ((across + along).square() < (ROUND + 1) ** 2 / ROUND * determinant)


def _disc(like: Float[Tensor, "h w"], y: int, x: int, radius: float) -> Float[Tensor, "h w"]:
    """1 inside a disc, falling to 0 over a third of its radius."""
    rows, columns = torch.arange(like.shape[0]).to(like) - y, torch.arange(like.shape[1]).to(like) - x
    distance = (rows[:, None].square() + columns[None].square()).sqrt()
    return (1 - (distance - radius) / (radius / 3)).clamp(0, 1)


# ---- the change taken apart, and put together

PORE, SPOT, BLOTCH, FACE = 0.5, 3.0, 4.0, 14.0
"""Gaussians that part pores from texture, texture from spots' surroundings and tone, and blotches from the colour of a whole cheek."""
SOFTENED = 3.0
"""Unevenness in L* up to which texture is softened; a wrinkle or a fold, which has more, keeps its own."""
CORE = 2.5  # Times the mean fine detail of a face's skin up to which a filled spot keeps its own
SKIN = 0.8
"""Share of open skin from which on a pixel is looked at for spots."""


@dataclass(frozen=True, eq=False)
class FaceParts:
    """What may be done to a face, in the pixels of its aligned crop: changes in CIELAB, each at its full strength."""

    crop: Float[Tensor, "3 size size"]  # the face as it is, RGB in [0, 1]
    fill: Float[Tensor, "3 size size"]  # levels each spot with the skin around it; 0 off the spots
    owner: Int[Tensor, "size size"]  # the spot that a pixel belongs to by its number, -1 where there is none
    own: Float[Tensor, "3 size size"]  # the retoucher's change of spots that it alone saw
    tone: Float[Tensor, "3 size size"]  # evens blotches
    texture: Float[Tensor, "3 size size"]  # softens unevenness
    spots: tuple[Spot, ...]  # in pixels of the crop


def split_edit(crop: Float[Tensor, "3 size size"], retouched: Float[Tensor, "3 size size"], mesh: Float[Tensor, "468 dim"]) -> FaceParts:
    """Take the change from a crop to its retouch, RGB in [0, 1], apart. Each part is 0 where no open skin is: on eyes, lids, brows, lips,
    nostrils, hair, stubble, glasses and off the face."""
    lab, unit = srgb_to_lab(crop)[None], crop.shape[-1] / 128
    change = srgb_to_lab(retouched)[None] - lab
    skin = open_skin(lab[0], mesh)[None]
    spots, owner, opacity = find_spots(lab[0], skin[0] > SKIN)
    even = skin * (1 - opacity)
    # Pores stay in a filled spot, but not a small one's dark core, which is as fine as they are.
    soft = blur(lab, PORE * unit)
    grain = CORE * ((lab - soft).abs() * even).sum((2, 3), keepdim=True) / even.sum().clamp_min(1e-6)
    level = blur_inside(lab, even, SPOT * unit) + (lab - soft).clamp(-grain, grain)
    fill = opacity * skin * (level - lab) * (blur(even, SPOT * unit) > 0.02)

    broad = blur_inside(change, skin, BLOTCH * unit)
    left = lab + broad
    blotches = blur_inside(left, even, FACE * unit) - blur_inside(left, even, BLOTCH * unit)
    tone = skin * (broad + blotches * lab.new_tensor([0.0, 1.0, 1.0])[:, None, None])  # light and shade are the shape of the face, and stay
    # The face as a whole keeps its colour: it is neither whitened nor parted from the neck.
    tone = tone - skin * (tone.sum((2, 3), keepdim=True) / skin.sum().clamp_min(1e-6))

    fine = change - broad
    seen = ((fine[:, :2].abs().sum(1, keepdim=True) - CONTRAST) / CONTRAST).clamp(0, 1)
    own = even * blur(fine * seen, PORE * unit)
    texture = blur(fine * (1 - seen), PORE * unit)
    rough = soft + texture
    rough = (rough - blur_inside(rough, even, SPOT * unit)) * lab.new_tensor([1.0, 0.0, 0.0])[:, None, None]
    texture = even * (texture - rough * (-(rough / SOFTENED).square()).exp())
    return FaceParts(crop, fill[0], owner, own[0], tone[0], texture[0], tuple(spots))


def combine(parts: FaceParts, controls: Controls, chosen: Mapping[int, bool]) -> Float[Tensor, "3 size size"]:
    """The face, RGB in [0, 1], with so much of each part: more of a control changes more where its part is, and nothing elsewhere, where
    the very pixels of the crop stay. Spots that are `chosen` by number are removed (or not) whatever their kind."""
    moles = controls.moles == "remove" and not controls.children
    removed = [chosen.get(number, spot.kind == "blemish" or moles) for number, spot in enumerate(parts.spots)]
    healed = torch.tensor([*removed, False], device=parts.owner.device)[parts.owner]  # -1 is the last
    change = controls.blemishes * (parts.fill * healed + parts.own)
    if not controls.children:
        change = change + controls.tone * parts.tone + controls.texture * parts.texture
    changed = (controls.strength * change).abs().sum(0) > 0
    return torch.where(changed, lab_to_srgb(srgb_to_lab(parts.crop) + controls.strength * change), parts.crop)
