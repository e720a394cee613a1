"""Embedded rows of the tasks: looks and action units rendered on synthetic people (`preference_data.people.synthetic`), and plotted shapes.

Neither people nor product colours are shared between splits; a seed's person, look and expression have nothing to do with those of the same
seed in another split or task.
"""

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Any, Literal
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from portraitkit.errors import DataError, nearest
from preference_data.people.expressions import calm_stage, draw_expression, perform
from preference_data.people.makeup import BARE, draw_lips, draw_look, render_makeup
from preference_data.people.synthetic import SPLITS, Person, make_person

SIZE = 128
Draw = Callable[[torch.Generator], Person]  # Gives a person, `SIZE` pixels wide, in place of a synthetic one of the split


def makeup_row(split: str, seed: int, *, lips_only: bool = False, draw: Draw | None = None) -> dict[str, Any]:
    """One face with makeup, or bare, and the truth about it; `lips_only` is a lipstick of the published shape and nothing else. Equal
    splits and seeds give equal rows.

    Returns:
        `image` (RGB, 3 x 128 x 128, [0, 1]), `solution` (items, in the order lips, blush, eyeshadow), and where it comes from:
        `synthetic` (True), `split`, `seed`, `morph` (who it is, see `preference_data.people.synthetic`).
    """
    digest = _digest("makeup", split, seed)
    person = draw(torch.Generator().manual_seed(digest)) if draw else bare_person(split, seed)
    look = draw_lips(random.Random(digest), split=split) if lips_only else draw_look(random.Random(digest), split=split, bare=BARE)
    return {"image": render_makeup(person.clean, person.mesh, look), "solution": look, **_origin(split, seed, person)}


def bare_person(split: str, seed: int) -> Person:
    """The synthetic person that such a row shows; `clean` is the face without makeup."""
    return make_person(split, torch.Generator().manual_seed(_digest("makeup", split, seed)), size=SIZE)


def emotion_row(split: str, seed: int, *, draw: Draw | None = None) -> dict[str, Any]:
    """One face with an expression and the truth about it: what was rendered on a face at rest, which `draw` gives, too.

    Returns:
        `image` (RGB, 3 x 128 x 128, [0, 1]), `AUs` (such as ["AU6", "AU12"]), `labels` (one emotion), `target` (the completion to
        imitate), `intensities` (by unit, in [0, 1]), and where it comes from, as in `makeup_row`.
    """
    digest = _digest("emotion", split, seed)
    generator = torch.Generator().manual_seed(digest)
    person = draw(generator) if draw else make_person(split, generator, size=SIZE, faces=calm_stage())
    emotion, units = draw_expression(random.Random(digest))
    image, _ = perform(person.clean, person.mesh, units)
    return {
        "image": image,
        "AUs": [f"AU{unit}" for unit in units],
        "labels": [emotion],
        "target": make_target(units, emotion),
        "intensities": {f"AU{unit}": round(intensity, 4) for unit, intensity in units.items()},
        **_origin(split, seed, person),
    }


def make_target(units: Iterable[int], emotion: str) -> str:
    """A short completion that earns the maximum: each unit as "(AU4)", and the emotion that they show.

    >>> make_target([6, 12], "happiness")
    '<think>(AU6) (AU12) show happiness</think><answer>happiness</answer>'
    """
    named = " ".join(f"(AU{unit})" for unit in sorted(units)) or "no units"
    return f"<think>{named} show {emotion}</think><answer>{emotion}</answer>"


def _digest(task: str, split: str, seed: int) -> int:
    if split not in SPLITS:
        raise DataError(f"split {split!r}: unknown{nearest(split, SPLITS)}; use {', '.join(SPLITS)}")
    return int.from_bytes(sha256(f"{task} {split} {seed}".encode()).digest()[:7])


def _origin(split: str, seed: int, person: Person) -> dict[str, Any]:
    return {"synthetic": True, "split": split, "seed": seed, "morph": person.morph}


# ---- the area task: one filled shape on axes from 0 to 50 (tsnewnami/vlm-area), seeded
#
# The source drew afresh with every step, unseeded, and had no held-out set. Here a shape belongs to a cell of the grid (kind, width and
# height in steps of half a unit), and every cell belongs to one split, so that a held-out size was never trained on.

Kind = Literal["square", "rectangle", "circle", "triangle"]
KINDS: tuple[Kind, ...] = ("square", "rectangle", "circle", "triangle")
SIDE = 50.0
MARGIN = 0.25
PIXELS = (208, 207)
SHARES = {"held_out": range(0, 3), "validation": range(3, 5), "train": range(5, 16)}  # Which of 16 parts of the grid's cells a split has


@dataclass(frozen=True)
class Shape:
    """One shape in axis units."""

    kind: Kind  # square, rectangle, circle or (isosceles) triangle
    width: float  # side, diameter or base, rounded to 1 decimal
    height: float  # equal to the width for squares and circles
    angle: float  # rotation in degrees, counterclockwise
    center: tuple[float, float]  # of the bounding box before rotation
    color: tuple[float, float, float]  # RGB in [.1, .9]

    @property
    def area(self) -> float:
        """In square units, rounded to 2 decimals."""
        factor = {"square": 1.0, "rectangle": 1.0, "circle": math.pi / 4, "triangle": 0.5}[self.kind]
        return round(factor * self.width * self.height, 2)

    @property
    def corners(self) -> Float[np.ndarray, "n 2"]:
        """Corners of the rotated shape; of a circle, those of its bounding box."""
        w, h = self.width / 2, self.height / 2
        points = np.array([[-w, -h], [w, -h], [0, h]] if self.kind == "triangle" else [[-w, -h], [w, -h], [w, h], [-w, h]])
        turn = math.radians(0.0 if self.kind == "circle" else self.angle)
        rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        return points @ rotation.T + np.array(self.center)


def split_of(kind: Kind, width: float, height: float) -> str:
    """The split that a shape's cell of the grid belongs to; a rectangle belongs where the one with swapped sides does."""
    cell = (int(2 * width), int(2 * height))
    sides = cell if kind == "triangle" else tuple(sorted(cell))
    part = crc32(f"{kind} {sides}".encode()) % 16
    return next(name for name, parts in SHARES.items() if part in parts)


def draw_shape(split: str, seed: int, *, sizes: tuple[float, float] = (20.0, 35.0), max_angle: float = 0.0) -> Shape:
    """A random shape of a split (train, validation or held_out) that fits into the axes; equal seeds give equal shapes. Its dimensions lie
    between `sizes` in axis units (published: 20 to 35, extension 5 to 35), its rotation is uniform in +- `max_angle` degrees (0 and 45)."""
    random = np.random.default_rng([seed, sorted(SHARES).index(split)])
    kind = KINDS[random.integers(4)]
    while True:
        width, height = (round(float(value), 1) for value in random.uniform(*sizes, 2))
        if kind in ("square", "circle"):
            height = width
        if kind == "rectangle" and abs(width - height) < min(width, height) / 4:
            continue
        if split_of(kind, width, height) != split:
            continue
        angle = float(random.uniform(-max_angle, max_angle))
        centered = Shape(kind, width, height, angle, (0.0, 0.0), (0.5, 0.5, 0.5))
        low, high = centered.corners.min(0), centered.corners.max(0)
        if (high - low).max() > SIDE - 2 * MARGIN:
            continue
        x, y = random.uniform(MARGIN - low, SIDE - MARGIN - high)
        red, green, blue = random.uniform(0.1, 0.9, 3)
        return Shape(kind, width, height, angle, (float(x), float(y)), (float(red), float(green), float(blue)))


def draw_picture(shape: Shape) -> Float[Tensor, "3 208 207"]:
    """The shape, filled with a black edge, on axes from 0 to 50 with a grid every 10 and ticks every 5; RGB in [0, 1]."""
    from matplotlib.patches import Circle, Polygon

    axes, canvas = _canvas()
    style = {"facecolor": shape.color, "edgecolor": "black", "linewidth": 1.0, "zorder": 3}
    patch = Circle(shape.center, shape.width / 2, **style) if shape.kind == "circle" else Polygon(shape.corners, closed=True, **style)
    axes.add_patch(patch)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    patch.remove()
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


@cache
def _canvas():
    """The empty axes, drawn once and kept."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MultipleLocator

    height, width = PIXELS
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.105, 0.085, 0.875, 0.895))
    axes.set(xlim=(0, SIDE), ylim=(0, SIDE))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MultipleLocator(10))
        axis.set_minor_locator(MultipleLocator(5))
    axes.grid(which="major", linewidth=0.5, color="0.8")
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=6, pad=1.5, length=2, which="both")
    return axes, canvas
