"""Spots of a face: where they are, how large, and whether one is a mole or a blemish.

A spot is a round patch that is darker or redder than the skin around it. Blobs are sought at four sizes, as the maxima of a difference
of Gaussians; those that are drawn out, as wrinkles and hairs are, are dropped by the ratio of the curvatures at the maximum (Lowe 2004,
section 4.1). What tells a mole or a freckle from a blemish is colour alone: pigment takes red light away, too, inflammation hardly any.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import max_pool2d

from portraitkit.faces.regions import region_masks
from portraitkit.pictures.images import lab_to_srgb
from reward_models.filters import blur, blur_inside

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
    and without hair, stubble and glasses, which have more fine detail than skin or are much darker.

    Args:
        lab: the crop in CIELAB.
        mesh: in pixels of the crop.
    """
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
    """The spots of an aligned face crop, strongest first, and which pixels are theirs.

    Args:
        lab: the crop in CIELAB.
        skin: where spots may lie; a spot's centre keeps off the edge of it by its own size.

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
        shape = _shape(standing[size][0, 0], y, x, size * unit) * inside[0, 0]
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


def _shape(response: Float[Tensor, "h w"], y: int, x: int, sigma: float) -> Float[Tensor, "h w"]:
    """A spot's opacity: what stands out at least a fifth as much as its middle, no further from it than three sigma."""
    shares = response / response[y, x]
    return ((shares - 0.1) / 0.2).clamp(0, 1) * _disc(response, y, x, 2.4 * sigma)
