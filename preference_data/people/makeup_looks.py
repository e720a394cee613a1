"""Seeded looks: which makeup a face wears, in colours as they are sold, and in any others.

The splits share no colour: a hash of the 24-bit value gives 8 of 10 colours to train, 1 each to validation and held_out. So a
model that has memorised the training colours gains nothing on the others.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
from skimage.color import lab2rgb, rgb2lab

from preference_data.people.makeup_shapes import REGIONS, shapes_of

Range = tuple[float, float]
SPLIT_OF_TENTH = ("train",) * 8 + ("validation", "held_out")
BASIC_SHARE = 0.5  # of the published shape; the region's others share the rest
ORDER = ("lips", "blush", "eyeshadow")  # of the items in a solution


@dataclass(frozen=True)
class Family:
    """Colours that go by one name: ranges of CIELAB lightness, chroma and hue (degrees), and how often they are worn."""

    share: float
    lightness: Range
    chroma: Range
    hue: Range


FAMILIES = {
    "lips": (
        Family(0.30, (32, 50), (45, 70), (5, 40)),  # reds
        Family(0.25, (45, 68), (30, 60), (-15, 25)),  # pinks
        Family(0.15, (48, 68), (15, 35), (20, 55)),  # nudes
        Family(0.15, (50, 68), (40, 65), (30, 55)),  # corals
        Family(0.15, (15, 35), (20, 45), (-30, 20)),  # berries and plums
    ),
    "blush": (
        Family(0.40, (52, 75), (25, 50), (-5, 30)),  # pinks
        Family(0.35, (55, 75), (30, 55), (30, 55)),  # peaches
        Family(0.25, (38, 58), (25, 45), (0, 40)),  # rose and brick
    ),
    "eyeshadow": (
        Family(0.35, (25, 60), (10, 35), (40, 80)),  # browns
        Family(0.20, (30, 60), (12, 35), (-50, 10)),  # mauves
        Family(0.20, (10, 45), (0, 8), (0, 360)),  # greys
        Family(0.25, (30, 65), (20, 50), (0, 360)),  # any hue
    ),
}


def split_of(color: str) -> str:
    """The split that may use a colour `#RRGGBB`."""
    return SPLIT_OF_TENTH[(int(color[1:], 16) * 2654435761 % 2**32 >> 8) % 10]


def draw_color(region: str, rng: random.Random, *, wide: float = 0.25, split: str | None = None) -> str:
    """A colour `#RRGGBB` for a region.

    Args:
        region: lips, blush or eyeshadow.
        rng: source of all randomness.
        wide: share of colours drawn evenly from sRGB instead of from the region's `FAMILIES`.
        split: draw again until the colour is this split's own; None: any colour.
    """
    while True:
        color = _any_color(rng) if rng.random() < wide else _family_color(region, rng)
        if color is not None and split in (None, split_of(color)):
            return color


def draw_lips(rng: random.Random, *, wide: float = 0.25, split: str | None = None) -> list[dict[str, str]]:
    """A look of lipstick alone, of the published shape."""
    return [{"shape": shapes_of("lips")[0], "color": draw_color("lips", rng, wide=wide, split=split)}]


def draw_look(rng: random.Random, *, wide: float = 0.25, split: str | None = None) -> list[dict[str, str]]:
    """A look of 1 to 3 items of different regions, evenly; makeup that is absent is left out. Half of the shapes are the published ones."""
    regions = rng.sample(REGIONS, rng.randint(1, 3))
    look: list[dict[str, str]] = []
    for region in sorted(regions, key=ORDER.index):
        basic, *others = shapes_of(region)
        shape = basic if rng.random() < BASIC_SHARE else rng.choice(others)
        look.append({"shape": shape, "color": draw_color(region, rng, wide=wide, split=split)})
    return look


def _any_color(rng: random.Random) -> str:
    return f"#{rng.randrange(2**24):06X}"


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
