"""Makeup extraction: the colours (and shapes) of a look as JSON (JuneJe0n/MakeupExtractor).

`TASK` reads `<answer>[{"shape": ..., "color": "#RRGGBB"}, ...]</answer>`, 1 to 3 items; `LIPS` reads
`<answer>{"color": "#RRGGBB"}</answer>`.

The colour score is `max(0, 1 - dE76 / 100)` in CIELAB. `paper` rewards as published; three faults of theirs are repaired in
`fixed`: F1 over matches of S >= .6 saturates (one colour matches everything), garbage outscores some answers, hex digits are
never checked. There, accuracy is a soft F1 (matches weighted by S, optimal assignment), and it counts only where the answer is
well formed throughout.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from skimage.color import rgb2lab

from portraitkit.errors import DataError
from portraitkit.vlm.task import Mode, Score, Task

TAGS = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
WHOLE = re.compile(r"\s*<answer>((?:(?!</?answer>).)*)</answer>\s*", re.DOTALL)
HEX = re.compile(r"#[0-9A-Fa-f]{6}")
MATCH = 0.6
PAPER_FLOOR = 0.2
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
    return max(0.0, 1 - float(np.linalg.norm(np.subtract(hex_to_lab(color), hex_to_lab(truth)))) / 100)


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


def _score_look(completion: str, truth: list[Item], mode: Mode) -> Score:
    tagged = TAGS.search(completion) if mode == "paper" else WHOLE.fullmatch(completion)
    content = tagged[1] if tagged else completion
    answer, is_json = _read_json(content)
    items: list[Any] = answer if isinstance(answer, list) else []
    good = [_is_item(item, check_hex=mode == "fixed") for item in items]
    low = PAPER_FLOOR if mode == "paper" else 0.0
    schema = sum(1.0 if ok else low for ok in good) / len(good) if good else low
    form = 0.3 * (1.0 if tagged else low) + 0.3 * (1.0 if is_json else low) + 0.4 * schema
    if mode == "paper":
        accuracy = greedy_f1([item for item, ok in zip(items, good, strict=True) if ok], truth) if any(good) else PAPER_FLOOR
    else:
        accuracy = soft_f1(items, truth) if tagged and 1 <= len(items) <= 3 and all(good) else 0.0
        form = form if len(items) <= 3 else 0.3 * bool(tagged) + 0.3
    return Score(0.3 * form + accuracy, {"format": 0.3 * form, "accuracy": accuracy}, items if any(good) else None)


def _score_lips(completion: str, truth: list[Item], mode: Mode) -> Score:
    tagged = TAGS.search(completion) if mode == "paper" else WHOLE.fullmatch(completion)
    answer, _ = _read_json(tagged[1]) if tagged else (None, False)
    color = answer.get("color") if isinstance(answer, dict) else None
    if not isinstance(color, str) or HEX.fullmatch(color) is None:
        return Score(0.0, {"color": 0.0}, None)
    value = color_score(color, truth[0]["color"])
    return Score(value, {"color": value}, {"color": color})


def _read_json(text: str) -> tuple[Any, bool]:
    """The JSON value in a text, and whether there is one; numbers that JSON does not know and deep nesting are not read."""
    try:
        return json.loads(text, parse_constant=_refuse), True
    except (ValueError, RecursionError):
        return None, False


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _is_item(item: object, *, check_hex: bool) -> bool:
    if not (isinstance(item, dict) and isinstance(item.get("shape"), str) and isinstance(item.get("color"), str)):
        return False
    return not check_hex or HEX.fullmatch(item["color"]) is not None


def _read_truth(row: Mapping[str, Any]) -> list[Item]:
    solution = row.get("solution")
    if not isinstance(solution, list) or not 1 <= len(solution) <= 3:
        raise DataError('solution: must be a list of 1 to 3 items such as {"shape": "LIP_FULL_BASIC", "color": "#B03050"}')
    for item in solution:
        if not _is_item(item, check_hex=True):
            raise DataError(f"solution item {item!r}: needs a string shape and a color of the form #RRGGBB")
    return solution


TASK = Task(
    name="makeup",
    prompt=(
        "Which makeup does this face wear? Answer with a JSON list of one to three items, one for each kind of makeup you see, and nothing "
        'else: <answer>[{"shape": "...", "color": "#RRGGBB"}, ...]</answer>. The color is that of the product, not of the skin beneath it.'
    ),
    read_truth=_read_truth,
    score=_score_look,
    ranges={"paper": (0.132, 1.3), "fixed": (0.0, 1.3)},
    perfect=lambda truth: f"<answer>{json.dumps([{'shape': item['shape'], 'color': item['color']} for item in truth])}</answer>",
)

LIPS = Task(
    name="makeup-lips",
    prompt=(
        'Which lipstick does this face wear? Answer with its color alone: <answer>{"color": "#RRGGBB"}</answer>. The color is that of the '
        "product, not of the lips beneath it."
    ),
    read_truth=_read_truth,
    score=_score_lips,
    ranges={"paper": (0.0, 1.0), "fixed": (0.0, 1.0)},
    perfect=lambda truth: f"<answer>{json.dumps({'color': truth[0]['color']})}</answer>",
)
