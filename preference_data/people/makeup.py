"""An open makeup renderer: lips, blush and eyeshadow on any face photo, over the 468-point mesh; and seeded looks to render.

A look is a sequence of items `{"shape": name, "color": "#RRGGBB"}`, names from `makeup_shapes.SHAPES`. An item may override
`alpha`, `sigma`, `gamma` and `split` (0 to 255, `makeup_shapes` says what they mean).

The colour of an item is the product's own, not the one that pixels end up with. How a pixel gets there:

1. The product under the light that falls on this pixel. Light scales linear RGB, and CIELAB's a*, b* and L* + 16 all scale
   with its cube root; the light is read from the skin, as L* + 16 over the region's mean of it, in which bright pixels count
   more. So folds, pores and the shadow side stay, and where the light is as on most of the region the product has its colour.
2. Gloss and shimmer: highlights where the skin has its own, and along the shape's shine lines; powder sparkles.
3. Laid over the skin in CIELAB, in which equal steps look equal: skin + mask * alpha / 255 * (product - skin).

Everything is differentiable with respect to a colour given as a tensor. Pixels whose mask is 0 stay bit for bit.
"""

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from skimage.color import lab2rgb, rgb2lab
from torch import Tensor

from portraitkit.errors import DataError, nearest
from portraitkit.pictures.images import lab_to_srgb, srgb_to_lab
from preference_data.makeup_prompts import TABLES
from preference_data.people.makeup_shapes import REGIONS, SHAPES, Drawn, draw_shape, face_scale, shapes_of

HEX = re.compile(r"#[0-9A-Fa-f]{6}")
PARAMETERS = ("alpha", "sigma", "gamma", "split")
LIGHT = (0.2, 1.35)  # the light on a pixel over the region's mean, as cube roots: beyond it lies something else than skin
SPLIT_OF_TENTH = ("train",) * 8 + ("validation", "held_out")
BASIC_SHARE = 0.5  # of the published shape; the region's others share the rest
BARE = 0.15  # of the faces that wear nothing, where all makeup is asked for
ORDER = ("lips", "blush", "eyeshadow")  # of the items in a solution
Item = Mapping[str, Any]
Range = tuple[float, float]


@dataclass(frozen=True)
class Family:
    """Colours that go by one name: ranges of CIELAB lightness, chroma and hue (degrees), and how often they are worn."""

    share: float
    lightness: Range
    chroma: Range
    hue: Range


FAMILIES = {
    region: [Family(share, *(tuple(ends) for ends in ranges)) for share, *ranges in families]
    for region, families in TABLES["families"].items()
}


def render_makeup(photo: Float[Tensor, "3 h w"], mesh: Float[Tensor, "468 dim"], look: Sequence[Item]) -> Float[Tensor, "3 h w"]:
    """Put a look on a face; RGB in [0, 1], differentiable in the photo and in colours that are tensors (sRGB in [0, 1]) instead of
    `#RRGGBB`.

    Blush goes on first, then eyeshadow, then lips, whatever the order of the items; items of one region in their order.
    """
    check_look(look)
    out = photo
    for item in sorted(look, key=lambda item: REGIONS.index(SHAPES[item["shape"]].region)):
        shape = SHAPES[item["shape"]]
        alpha, sigma, gamma, split = (item.get(name, getattr(shape, name)) for name in PARAMETERS)
        drawn = draw_shape(shape, mesh.to(photo.device), *photo.shape[1:], sigma=sigma, split=split) if alpha else None
        if drawn is not None:
            sparkle = 0.0 if shape.region == "lips" or not gamma else _sparkle(drawn, mesh)
            color = item["color"]
            rgb = color if isinstance(color, Tensor) else torch.tensor([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
            out = apply_product(out, drawn, rgb.to(photo), alpha, gamma, sparkle)
    return out


def check_look(look: Sequence[Item]) -> None:
    """DataError for a shape that is not known, a colour that is no `#RRGGBB`, or a parameter out of 0..255, before anything is drawn."""
    for item in look:
        name = item.get("shape")
        if not isinstance(name, str) or name not in SHAPES:
            raise DataError(f"shape {name!r}: no such shape{nearest(str(name), SHAPES)}; known: {', '.join(SHAPES)}")
        color = item.get("color")
        if not isinstance(color, Tensor) and not (isinstance(color, str) and HEX.fullmatch(color)):
            raise DataError(f"color {color!r} of {item['shape']}: must have the form #RRGGBB")
        for name in PARAMETERS:
            value = item.get(name, 0)
            if type(value) is not int or not 0 <= value <= 255:
                raise DataError(f"{name} {value!r} of {item['shape']}: must be a whole number from 0 to 255")


def apply_product(
    photo: Float[Tensor, "3 h w"], drawn: Drawn, color: Float[Tensor, "3"], alpha: int, gamma: int, sparkle: Tensor | float = 0.0
) -> Float[Tensor, "3 h w"]:
    """Lay one product over the skin, see the module's three steps.

    All colours are sRGB in [0, 1]; opacity `alpha` and gloss or shimmer `gamma` are 0 to 255, the powder's glitter `sparkle` is in [0, 1].
    Where mask times alpha is 0, the photo's own pixels are returned, bit for bit.
    """
    height, width = drawn.mask.shape
    window = (slice(None), slice(drawn.top, drawn.top + height), slice(drawn.left, drawn.left + width))
    skin = photo[window]
    mask = drawn.mask.to(photo)
    lab = srgb_to_lab(skin)
    root = lab[:1] + 16
    weight = mask * root.square()  # bright pixels are skin; lashes, frames and the parting of the lips count for little
    light = (root / ((weight * root).sum() / weight.sum())).clamp(*LIGHT)
    product = srgb_to_lab(color.view(3, 1, 1))
    offset = product.new_tensor([16.0, 0.0, 0.0]).view(3, 1, 1)
    lit = (product + offset) * light - offset
    if gamma:
        own = ((light - 1.1) / 0.3).clamp(0, 1)
        gloss = gamma / 255 * (own + 0.8 * drawn.shine.to(photo) * light.square() + sparkle).clamp(0, 1)
        white = lit.new_tensor([98.0, 0.0, 0.0]).view(3, 1, 1)
        lit = torch.lerp(lit, white.expand_as(lit), 0.75 * gloss)
    opacity = mask * (alpha / 255)
    painted = lab_to_srgb(lab + opacity * (lit - lab))
    out = photo.clone()
    out[window] = torch.where(opacity > 0, painted, skin)
    return out


def _sparkle(drawn: Drawn, mesh: Float[Tensor, "468 dim"]) -> Float[Tensor, "h w"]:
    """Glitter that sticks to the face: the same grains at every size, finer than a pixel in small pictures."""
    points = mesh.detach()[:, :2].float()
    cell = 110 / face_scale(points)
    height, width = drawn.mask.shape
    y = ((torch.arange(height) + drawn.top + 0.5 - float(points[168, 1])) * cell).floor().long() % 256
    x = ((torch.arange(width) + drawn.left + 0.5 - float(points[168, 0])) * cell).floor().long() % 256
    grains = torch.rand(256, 256, generator=torch.Generator().manual_seed(0)) ** 6
    return 0.5 * grains[y[:, None], x].to(drawn.mask)


def split_of(color: str) -> str:
    """The split that may use a colour `#RRGGBB`; no two splits share one, so that memorised colours gain nothing.

    A hash of the 24-bit value gives 8 of 10 colours to train, 1 each to validation and held_out.
    """
    return SPLIT_OF_TENTH[(int(color[1:], 16) * 2654435761 % 2**32 >> 8) % 10]


def draw_color(region: str, rng: random.Random, *, wide: float = 0.25, split: str | None = None) -> str:
    """A colour `#RRGGBB` for lips, blush or eyeshadow, a share `wide` of them drawn evenly from sRGB instead of from the region's
    `FAMILIES`. With a `split` it is drawn again until it is that split's own.
    """
    while True:
        color = f"#{rng.randrange(2**24):06X}" if rng.random() < wide else _family_color(region, rng)
        if color is not None and split in (None, split_of(color)):
            return color


def draw_lips(rng: random.Random, *, wide: float = 0.25, split: str | None = None) -> list[dict[str, str]]:
    """A look of lipstick alone, of the published shape."""
    return [{"shape": shapes_of("lips")[0], "color": draw_color("lips", rng, wide=wide, split=split)}]


def draw_look(rng: random.Random, *, wide: float = 0.25, split: str | None = None, bare: float = 0.0) -> list[dict[str, str]]:
    """A look of 1 to 3 items of different regions, evenly; makeup that is absent is left out. Half of the shapes are the published ones.

    A share of the looks, `bare`, is empty; which, is drawn last, so that it changes nothing of the others.
    """
    regions = rng.sample(REGIONS, rng.randint(1, 3))
    look: list[dict[str, str]] = []
    for region in sorted(regions, key=ORDER.index):
        basic, *others = shapes_of(region)
        shape = basic if rng.random() < BASIC_SHARE else rng.choice(others)
        look.append({"shape": shape, "color": draw_color(region, rng, wide=wide, split=split)})
    return [] if bare and rng.random() < bare else look


def _family_color(region: str, rng: random.Random) -> str | None:
    """A colour of one of the region's families; None where the draw lies outside sRGB."""
    families = FAMILIES[region]
    family = rng.choices(families, [family.share for family in families])[0]
    lightness, chroma, hue = (rng.uniform(*limits) for limits in (family.lightness, family.chroma, family.hue))
    lab = np.array([lightness, chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))])
    rgb = lab2rgb(lab)
    if np.abs(rgb2lab(rgb) - lab).max() > 0.5:
        return None
    red, green, blue = np.round(rgb * 255).astype(int)
    return f"#{red:02X}{green:02X}{blue:02X}"
