"""The best constant answers of the makeup tasks: what a policy that looks at no picture would say.

No row's own answer is one of them: the best colour lies between the rows' colours, and an answer pays with every item that a row lacks.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations, permutations, product

import numpy as np
from jaxtyping import Float
from scipy.spatial.distance import cdist

from policies.vlm.tasks.makeup_scores import MATCH, Item, hex_to_lab
from portraitkit.vlm.task import Mode

MOST = 3
"""Items of a look."""
SHAPES = 10
"""Shapes that are combined: the most frequent ones."""
REFINED = 4
"""Combinations of shapes whose colours are searched to the end."""
ORDERS = np.array(list(permutations(range(MOST))))
Worth = Callable[[Float[np.ndarray, "colors n"]], Float[np.ndarray, " colors"]]
"""What colours earn that are so far, in dE76, from n others."""


def best_lipstick(truths: Sequence[Sequence[Item]]) -> str:
    """The colour with the highest mean colour score, as `#RRGGBB`."""
    labs = np.array([hex_to_lab(truth[0]["color"]) for truth in truths])
    return _best_color(labs, lambda distances: _color_scores(distances).sum(-1))


def best_looks(truths: Sequence[Sequence[Item]], mode: Mode) -> list[list[Item]]:
    """Looks of high mean accuracy, by coordinate ascent over their colours from the best combinations of shapes.

    The ascent alternates: each row's items are matched with the look's, then each colour of the look is searched anew for the items that
    it was matched with. Neither step lowers the mean in `fixed`; what `paper` pays for matches is searched in the same way.
    """
    rows = _Rows(truths, mode)
    shapes = [shape for shape, _ in Counter(item["shape"] for truth in truths for item in truth).most_common(SHAPES)]
    colors = {shape: rows.best_color(shape, np.where(rows.shapes == shape, rows.weights(1), 0.0)) for shape in shapes}
    sets = [some for count in range(1, MOST + 1) for some in combinations(shapes, count)]
    looks = [[{"shape": shape, "color": colors[shape]} for shape in some] for some in sets]
    return [_ascend(look, rows) for look in sorted(looks, key=lambda look: -rows.match(look)[0])[:REFINED]]


def _ascend(look: list[Item], rows: "_Rows") -> list[Item]:
    mean, matched = rows.match(look)
    while True:
        better = [
            {"shape": item["shape"], "color": rows.best_color(item["shape"], rows.weights(len(look)) * matched[:, place])}
            for place, item in enumerate(look)
        ]
        found, matched = rows.match(better)
        if found <= mean + 1e-9:
            return look
        look, mean = better, found


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
        found = grid[worth(cdist(_labs(grid), labs)).argmax()]
        if step == 1:
            return "#" + "".join(f"{value:02X}" for value in found)
        reach, step = step, max(step // 4, 1)


def _labs(rgb: np.ndarray) -> Float[np.ndarray, "n 3"]:
    from skimage.color import rgb2lab

    return rgb2lab(rgb[None] / 255.0)[0]
