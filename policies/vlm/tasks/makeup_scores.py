"""Scores of colours, items and looks (JuneJe0n/MakeupExtractor), the best constant answers, and what the field reports.

Nothing is dropped in silence. Colour differences are means over the items that were answered, so beside each stands the share
that was not (`missing`; an unreadable answer misses all of its items) and the mean in which a missing item counts as 100, the
difference at which the colour score is 0. F1 counts unreadable answers as 0, shape accuracy counts missing items as wrong.

Names: `unreadable`, `set_f1` (published: greedy pairs of S >= .6), `soft_f1`, `shape_accuracy`, `missing`, `de76`, `de2000`,
`de76_missing_100`; the last five also per region, as in `lips_de76`; and `lips_extra`: items of a region, per row, that the
truth has not got. `unknown_region` counts items per row whose shape names no region. `bare_as_bare` and
`made_up_as_bare` are the shares of bare faces and of others that were answered with an empty list, where some faces are bare. Lower is
better for all but F1, shape_accuracy and bare_as_bare. A region that no truth holds has no figures but `extra`."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, permutations, product
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from skimage.color import deltaE_ciede2000, rgb2lab

from portraitkit.vlm.task import Mode

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


def published_color_score(color: object, truth: str) -> float:
    """`color_score` as published: any number of # before six digits, each two as Python's `int` reads them; .2 for anything else."""
    digits = color.lstrip("#") if isinstance(color, str) else ""
    try:
        return color_score(f"#{digits}", truth) if len(digits) == 6 else 0.2
    except ValueError:
        return 0.2


def similarity(item: Item, truth: Item) -> float:
    """S of two items: .7 colour + .3 shape, shape being 1 where equal and .2 where not; colour 0 where it is no hex colour."""
    shape = 1.0 if item["shape"] == truth["shape"] else 0.2
    color = color_score(item["color"], truth["color"]) if HEX.fullmatch(item["color"]) else 0.0
    return 0.7 * color + 0.3 * shape


def _published_similarity(item: Item, truth: Item) -> float:
    """S as published, of whatever an answer holds: .2 for what is missing, empty or of another type."""
    shape = 1.0 if truth["shape"] and item.get("shape") == truth["shape"] else 0.2
    return 0.7 * published_color_score(item.get("color"), truth["color"]) + 0.3 * shape


def greedy_f1(items: Sequence[Item], truth: Sequence[Item]) -> float:
    """The published accuracy: pairs of S >= .6, best first, one to one; then F1 of the counts; two empty looks agree."""
    pairs = sorted(
        ((_published_similarity(item, t), i, j) for i, item in enumerate(items) for j, t in enumerate(truth)),
        key=lambda pair: (-pair[0], *pair[1:]),
    )
    used_items, used_truth = set(), set()
    for s, i, j in pairs:
        if s >= MATCH and i not in used_items and j not in used_truth:
            used_items.add(i)
            used_truth.add(j)
    return 2 * len(used_items) / (len(items) + len(truth)) if items or truth else 1.0


def soft_f1(items: Sequence[Item], truth: Sequence[Item]) -> float:
    """`2 sum S / (items + truths)` over the optimal one-to-one assignment: 1 only for the truth itself, in any order."""
    if not items or not truth:
        return float(len(items) == len(truth))
    table = np.array([[similarity(item, t) for t in truth] for item in items])
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(2 * table[rows, columns].sum() / (len(items) + len(truth)))


REGIONS = {"LIP": "lips", "BLUSHER": "blush", "EYESHADOW": "eyeshadow"}
MISSING_DE76 = 100.0


@dataclass(frozen=True)
class Pair:
    """A true item and what was answered for it; None where nothing was."""

    region: str
    truth: Item
    item: Item | None

    @property
    def de76(self) -> float:
        """Euclidean distance in CIELAB; NaN if missing."""
        return float(np.linalg.norm(np.subtract(*self._labs()))) if self.item else float("nan")

    @property
    def de2000(self) -> float:
        """CIEDE2000; NaN if missing."""
        return float(deltaE_ciede2000(*self._labs())) if self.item else float("nan")

    def _labs(self) -> tuple[np.ndarray, np.ndarray]:
        assert self.item is not None
        return np.array(hex_to_lab(self.truth["color"])), np.array(hex_to_lab(self.item["color"]))


def region_of(shape: str) -> str:
    """Lips, blush or eyeshadow by the first word of a shape's name, in any case; "unknown" for any other."""
    return REGIONS.get(shape.split("_")[0].upper(), "unknown")


def pair_items(items: Sequence[Item] | None, truth: Sequence[Item]) -> tuple[list[Pair], list[Item]]:
    """Pair the items of an answer with the true ones, region by region, by the largest sum of S; what is left over comes second."""
    pairs: list[Pair] = []
    left = list(items or ())
    for region in dict.fromkeys(region_of(item["shape"]) for item in truth):
        wanted = [item for item in truth if region_of(item["shape"]) == region]
        given = [item for item in left if region_of(item["shape"]) == region]
        table = np.array([[similarity(item, t) for item in given] for t in wanted]).reshape(len(wanted), len(given))
        found = dict(zip(*(index.tolist() for index in linear_sum_assignment(table, maximize=True)), strict=True))
        pairs += [Pair(region, t, given[found[row]] if row in found else None) for row, t in enumerate(wanted)]
        used = {id(given[column]) for column in found.values()}
        left = [item for item in left if id(item) not in used]
    return pairs, left


def color_metrics(answers: Sequence[list[Item] | None], truths: Sequence[Sequence[Item]]) -> dict[str, float]:
    """The figures of `makeup-lips`: `unreadable`, `missing` (the same), `de76`, `de2000`, `de76_missing_100`; unreadable answers are None.

    Returns:
        Means; no entry where there is nothing to average.
    """
    if not truths:
        return {}
    pairs = [pair for answer, truth in zip(answers, truths, strict=True) for pair in pair_items(answer, truth)[0]]
    return {"unreadable": _share(answer is None for answer in answers), **_colors(pairs)}


def look_metrics(answers: Sequence[list[Item] | None], truths: Sequence[Sequence[Item]]) -> dict[str, float]:
    """The figures of `makeup`; arguments and result as for `color_metrics`, names in the module's docstring."""
    if not truths:
        return {}
    paired = [pair_items(answer, truth) for answer, truth in zip(answers, truths, strict=True)]
    pairs = [pair for row, _ in paired for pair in row]
    left = [region_of(item["shape"]) for _, row in paired for item in row]
    both = list(zip(answers, truths, strict=True))
    out = {
        "unreadable": _share(answer is None for answer in answers),
        "set_f1": _share(0.0 if answer is None else greedy_f1(answer, truth) for answer, truth in both),
        "soft_f1": _share(0.0 if answer is None else soft_f1(answer, truth) for answer, truth in both),
        **_items(pairs),
        "unknown_region": left.count("unknown") / len(truths),
    }
    for name, bare in (("bare_as_bare", True), ("made_up_as_bare", False)):
        own = [answer for answer, truth in both if (not truth) == bare]
        if own and not all(truths):
            out[name] = _share(answer == [] for answer in own)
    for region in REGIONS.values():
        figures = _items([pair for pair in pairs if pair.region == region])
        out |= {f"{region}_{name}": value for name, value in figures.items()}
        out[f"{region}_extra"] = left.count(region) / len(truths)
    return out


def _items(pairs: Sequence[Pair]) -> dict[str, float]:
    if not pairs:
        return {}
    right = _share(pair.item is not None and pair.item["shape"] == pair.truth["shape"] for pair in pairs)
    return {"shape_accuracy": right, **_colors(pairs)}


def _colors(pairs: Sequence[Pair]) -> dict[str, float]:
    answered = [pair for pair in pairs if pair.item]
    out = {"missing": 1 - len(answered) / len(pairs)}
    if answered:
        out["de76"] = float(np.mean([pair.de76 for pair in answered]))
        out["de2000"] = float(np.mean([pair.de2000 for pair in answered]))
    out["de76_missing_100"] = float(np.mean([pair.de76 if pair.item else MISSING_DE76 for pair in pairs]))
    return out


def _share(values) -> float:
    return float(np.mean(list(values)))


MOST = 3  # Items of a look
SHAPES = 10  # Shapes that are combined: the most frequent ones
REFINED = 4  # Combinations of shapes whose colours are searched to the end
ORDERS = np.array(list(permutations(range(MOST))))
Worth = Callable[[Float[np.ndarray, "colors n"]], Float[np.ndarray, " colors"]]  # What colours earn that are so far, in dE76, from n others


def best_lipstick(truths: Sequence[Sequence[Item]]) -> str:
    """The colour with the highest mean colour score, as `#RRGGBB`."""
    return _best_color(np.array([hex_to_lab(truth[0]["color"]) for truth in truths]), lambda distances: _color_scores(distances).sum(-1))


def best_looks(truths: Sequence[Sequence[Item]], mode: Mode) -> list[list[Item]]:
    """Looks of high mean accuracy, by coordinate ascent over their colours from the best combinations of shapes.

    The ascent alternates: each row's items are matched with the look's, then each colour of the look is searched anew for the items that
    it was matched with. Neither step lowers the mean in `fixed`; what `paper` pays for matches is searched in the same way.
    """
    truths = [truth for truth in truths if truth]  # on a bare face, no look earns anything
    if not truths:
        return []
    rows = _Rows(truths, mode)
    shapes = [shape for shape, _ in Counter(item["shape"] for truth in truths for item in truth).most_common(SHAPES)]
    colors = {shape: rows.best_color(shape, np.where(rows.shapes == shape, rows.weights(1), 0.0)) for shape in shapes}
    sets = [some for count in range(1, MOST + 1) for some in combinations(shapes, count)]
    looks = [[{"shape": shape, "color": colors[shape]} for shape in some] for some in sets]
    best = []
    for look in sorted(looks, key=lambda look: -rows.match(look)[0])[:REFINED]:
        better, mean, (found, matched) = look, -math.inf, rows.match(look)
        while found > mean + 1e-9:
            better, mean = look, found
            colored = [rows.best_color(item["shape"], rows.weights(len(look)) * matched[:, i]) for i, item in enumerate(look)]
            look = [{"shape": item["shape"], "color": color} for item, color in zip(look, colored, strict=True)]
            found, matched = rows.match(look)
        best.append(better)
    return best


class _Rows:
    """The items of all rows side by side, each row filled up to three with items that earn nothing."""

    def __init__(self, truths: Sequence[Sequence[Item]], mode: Mode) -> None:
        self.mode: Mode = mode
        self.counts = np.array([len(truth) for truth in truths])
        self.real = np.arange(MOST) < self.counts[:, None]
        self.shapes = np.array([[item["shape"] for item in truth] + [""] * (MOST - len(truth)) for truth in truths], dtype=object)
        self.labs = np.zeros((len(truths), MOST, 3))
        self.labs[self.real] = [hex_to_lab(item["color"]) for truth in truths for item in truth]

    def weights(self, items: int) -> Float[np.ndarray, "rows 3"]:
        """What a match with each item of the rows counts, in an answer of so many items; 0 for filling."""
        return np.where(self.real, 2 / (items + self.counts[:, None]), 0.0)

    def worth(self, shape: str, distances: Float[np.ndarray, "*n"], wanted: np.ndarray) -> Float[np.ndarray, "*n"]:
        """S of an item of this shape to items of the shapes wanted, so far away; in `paper` whether they match."""
        score = 0.7 * _color_scores(distances) + 0.3 * np.where(wanted == shape, 1.0, 0.2)
        return (score >= MATCH) * 1.0 if self.mode == "paper" else score

    def match(self, look: Sequence[Item]) -> tuple[float, Float[np.ndarray, "rows 3 3"]]:
        """Mean accuracy of a look, and which of its items (second axis) is matched with which of a row's (third): 0 or 1."""
        table = np.zeros((len(self.counts), MOST, MOST))
        for place, item in enumerate(look):
            distances = np.linalg.norm(self.labs - hex_to_lab(item["color"]), axis=-1)
            table[:, place] = self.worth(item["shape"], distances, self.shapes) * self.weights(len(look))
        sums = table[:, range(MOST), ORDERS].sum(-1)
        best = ORDERS[sums.argmax(1)]
        return float(sums.max(1).mean()), np.eye(MOST)[best]

    def best_color(self, shape: str, weights: Float[np.ndarray, "rows 3"]) -> str:
        """The colour that earns most for an item of a shape where its matches count so much."""
        used = weights > 0
        labs, wanted, weight = self.labs[used], self.shapes[used], weights[used]
        return _best_color(labs, lambda distances: self.worth(shape, distances, wanted) @ weight)


def _color_scores(distances: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    return np.maximum(0.0, 1 - distances / 100)


def _best_color(labs: Float[np.ndarray, "n 3"], worth: Worth) -> str:
    """Search sRGB on a grid, then around the best colour on finer ones, down to single steps."""
    found, reach, step = np.array([127, 127, 127]), 128, 17
    while True:
        offsets = np.arange(0, reach + 1, step)
        offsets = np.concatenate([-offsets[:0:-1], offsets])
        levels = [np.unique(np.clip(value + offsets, 0, 255)) for value in found]
        grid = np.array(list(product(*levels)))
        found = grid[worth(cdist(rgb2lab(grid[None] / 255.0)[0], labs)).argmax()]
        if step == 1:
            return "#" + "".join(f"{value:02X}" for value in found)
        reach, step = step, max(step // 4, 1)
