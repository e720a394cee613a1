"""What the field reports of makeup extraction: colour differences per region, F1 over sets, shape accuracy.

Nothing is dropped in silence. Colour differences are means over the items that were answered, so beside each stands the share
that was not (`missing`; an unreadable answer misses all of its items) and the mean in which a missing item counts as 100, the
difference at which the colour score is 0. F1 counts unreadable answers as 0, shape accuracy counts missing items as wrong.

Names: `unreadable`, `set_f1` (published: greedy pairs of S >= .6), `soft_f1`, `shape_accuracy`, `missing`, `de76`, `de2000`,
`de76_missing_100`; the last five also per region, as in `lips_de76`; and `lips_extra`: items of a region, per row, that the
truth has not got. `unknown_region` counts items per row whose shape names no region. Lower is better for all but F1 and
shape_accuracy. A region that no truth holds has no figures but `extra`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from skimage.color import deltaE_ciede2000

from policies.vlm.tasks.makeup_scores import Item, greedy_f1, hex_to_lab, similarity, soft_f1

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
    """The figures of `makeup-lips`: `unreadable`, `missing` (the same), `de76`, `de2000`, `de76_missing_100`.

    Args:
        answers: items read, None where unreadable.
        truths: items of each row.

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
    both = [(answer or [], truth) for answer, truth in zip(answers, truths, strict=True)]
    out = {
        "unreadable": _share(answer is None for answer in answers),
        "set_f1": float(np.mean([greedy_f1(answer, truth) for answer, truth in both])),
        "soft_f1": float(np.mean([soft_f1(answer, truth) if answer else 0.0 for answer, truth in both])),
        "shape_accuracy": _shape_accuracy(pairs),
        **_colors(pairs),
        "unknown_region": left.count("unknown") / len(truths),
    }
    for region in REGIONS.values():
        own = [pair for pair in pairs if pair.region == region]
        if own:
            figures = {"shape_accuracy": _shape_accuracy(own), **_colors(own)}
            out |= {f"{region}_{name}": value for name, value in figures.items()}
        out[f"{region}_extra"] = left.count(region) / len(truths)
    return out


def _colors(pairs: Sequence[Pair]) -> dict[str, float]:
    answered = [pair for pair in pairs if pair.item]
    out = {"missing": 1 - len(answered) / len(pairs)}
    if answered:
        out["de76"] = float(np.mean([pair.de76 for pair in answered]))
        out["de2000"] = float(np.mean([pair.de2000 for pair in answered]))
    out["de76_missing_100"] = float(np.mean([pair.de76 if pair.item else MISSING_DE76 for pair in pairs]))
    return out


def _shape_accuracy(pairs: Sequence[Pair]) -> float:
    return _share(pair.item is not None and pair.item["shape"] == pair.truth["shape"] for pair in pairs)


def _share(values) -> float:
    return float(np.mean(list(values)))
