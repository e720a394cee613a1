"""Scores of colours, items and looks, as JuneJe0n/MakeupExtractor publishes them, and the soft F1 that repairs theirs."""

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from skimage.color import rgb2lab

HEX = re.compile(r"#[0-9A-Fa-f]{6}")
MATCH = 0.6
Item = dict[str, Any]


@lru_cache(maxsize=4096)
def hex_to_lab(color: str) -> tuple[float, float, float]:
    """CIELAB (D65, 2 degree observer) of `#RRGGBB`."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    lightness, a, b = rgb2lab(rgb[None, None])[0, 0]
    return float(lightness), float(a), float(b)


def color_score(color: str, truth: str) -> float:
    """`max(0, 1 - dE76 / 100)` of two hex colours, in [0, 1].

    >>> round(color_score("#DC3813", "#D63027"), 4)
    0.8906
    """
    return max(0.0, 1 - math.dist(hex_to_lab(color), hex_to_lab(truth)) / 100)


def similarity(item: Item, truth: Item) -> float:
    """S of two items: .7 colour + .3 shape, shape being 1 where equal and .2 where not; colour 0 where it is no hex colour."""
    shape = 1.0 if item["shape"] == truth["shape"] else 0.2
    color = color_score(item["color"], truth["color"]) if HEX.fullmatch(item["color"]) else 0.0
    return 0.7 * color + 0.3 * shape


def greedy_f1(items: Sequence[Item], truth: Sequence[Item]) -> float:
    """The published accuracy: pairs of S >= .6, best first, one to one; then F1 of the counts."""
    pairs = sorted(
        ((similarity(item, t), i, j) for i, item in enumerate(items) for j, t in enumerate(truth)), key=lambda pair: (-pair[0], *pair[1:])
    )
    used_items, used_truth = set(), set()
    for s, i, j in pairs:
        if s >= MATCH and i not in used_items and j not in used_truth:
            used_items.add(i)
            used_truth.add(j)
    return 2 * len(used_items) / (len(items) + len(truth)) if items else 0.0


def soft_f1(items: Sequence[Item], truth: Sequence[Item]) -> float:
    """`2 sum S / (items + truths)` over the optimal one-to-one assignment: 1 only for the truth itself, in any order."""
    table = np.array([[similarity(item, t) for t in truth] for item in items])
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(2 * table[rows, columns].sum() / (len(items) + len(truth)))
