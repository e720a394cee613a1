"""What the language part is first taught to read off the pictures: facts of each task's rows, as numbers with a loss.

The digits of an answer say little about how to look: from them alone, lipstick's colour is not found within thousands of rows. So linear
heads on the last token of the prompt predict what the answer will be made of, beside the answer itself.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from policies.vlm.tasks.makeup_scores import hex_to_lab
from preference_data.emotion_rows import EMOTIONS
from preference_data.people.makeup_shapes import SHAPES
from preference_data.schema import DIMENSIONS

REGIONS = {region: [name for name, shape in SHAPES.items() if shape.region == region] for region in ("lips", "blush", "eyeshadow")}
UNITS = (1, 2, 4, 5, 6, 7, 9, 12, 15, 17, 20, 25, 26, 43)
TYPICAL_AREA = 400.0
LAB_SCALE = 50.0


@dataclass(frozen=True)
class Facts:
    """One kind of facts.

    Attributes:
        tasks: whose rows have them.
        read: columns of a row -> numbers.
        outputs: numbers that the head predicts.
        loss: (predicted, true) -> loss.
        describe: (predicted, true) -> figures for the log.
    """

    tasks: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], list[float]]
    outputs: int
    loss: Callable[[Float[Tensor, "n outputs"], Float[Tensor, "n facts"]], Float[Tensor, ""]]
    describe: Callable[[Float[Tensor, "n outputs"], Float[Tensor, "n facts"]], dict[str, float]]


def _read_area(columns: Mapping[str, Any]) -> list[float]:
    return [math.log(columns["area"] / TYPICAL_AREA)]


def _area_loss(predicted: Tensor, true: Tensor) -> Tensor:
    return 3 * F.smooth_l1_loss(predicted, true, beta=0.1)


def _area_figures(predicted: Tensor, true: Tensor) -> dict[str, float]:
    return {"relative_error": float(((predicted - true).exp() - 1).abs().mean())}


def _read_makeup(columns: Mapping[str, Any]) -> list[float]:
    """Per region: present, shape, L*, a*, b*."""
    facts: list[float] = []
    for region, names in REGIONS.items():
        found = next((item for item in columns["solution"] if SHAPES[item["shape"]].region == region), None)
        lab = [value / LAB_SCALE for value in hex_to_lab(found["color"])] if found else [0.0, 0.0, 0.0]
        facts += [float(found is not None), float(names.index(found["shape"])) if found else 0.0, *lab]
    return facts


def _makeup_parts(predicted: Tensor, true: Tensor) -> Sequence[tuple[str, Tensor, Tensor, Tensor, Tensor]]:
    """(region, presence logit, shape logits, Lab, truth) for each region."""
    parts, start = [], 0
    for place, (region, names) in enumerate(REGIONS.items()):
        end = start + 1 + len(names)
        parts.append((region, predicted[:, start], predicted[:, start + 1 : end], predicted[:, end : end + 3], true[:, 5 * place :][:, :5]))
        start = end + 3
    return parts


def _makeup_loss(predicted: Tensor, true: Tensor) -> Tensor:
    total = predicted.new_zeros(())
    for _, present, shape, lab, truth in _makeup_parts(predicted, true):
        weight = truth[:, 0] / truth[:, 0].sum().clamp_min(1)
        total = total + 0.3 * F.binary_cross_entropy_with_logits(present, truth[:, 0])
        total = total + 0.2 * (F.cross_entropy(shape, truth[:, 1].long(), reduction="none") * weight).sum()
        total = total + 1.5 * (F.smooth_l1_loss(lab, truth[:, 2:], beta=0.1, reduction="none").mean(1) * weight).sum()
    return total


def _makeup_figures(predicted: Tensor, true: Tensor) -> dict[str, float]:
    figures = {}
    for region, present, shape, lab, truth in _makeup_parts(predicted, true):
        worn = truth[:, 0] > 0
        figures[f"{region}_present"] = float(((present > 0) == worn).float().mean())
        figures[f"{region}_shape"] = float((shape[worn].argmax(1) == truth[worn, 1]).float().mean())
        figures[f"{region}_de76"] = float(LAB_SCALE * (lab[worn] - truth[worn, 2:]).norm(dim=1).mean())
    return figures


def _read_emotion(columns: Mapping[str, Any]) -> list[float]:
    return [float(EMOTIONS.index(columns["labels"][0])), *(float(f"AU{unit}" in columns["AUs"]) for unit in UNITS)]


def _emotion_loss(predicted: Tensor, true: Tensor) -> Tensor:
    emotion, units = predicted[:, : len(EMOTIONS)], predicted[:, len(EMOTIONS) :]
    return 0.5 * F.cross_entropy(emotion, true[:, 0].long()) + 2 * F.binary_cross_entropy_with_logits(units, true[:, 1:])


def _emotion_figures(predicted: Tensor, true: Tensor) -> dict[str, float]:
    units = (predicted[:, len(EMOTIONS) :] > 0) == (true[:, 1:] > 0)
    return {
        "emotion": float((predicted[:, : len(EMOTIONS)].argmax(1) == true[:, 0]).float().mean()),
        "units": float(units.float().mean()),
        "worst_unit": float(units.float().mean(0).min()),
    }


def _read_scores(columns: Mapping[str, Any]) -> list[float]:
    """Scores of both candidates, 1 to 5 as -1 to 1."""
    return [(columns["scores"][name][side] - 3) / 2 for side in (0, 1) for name in DIMENSIONS]


def _scores_loss(predicted: Tensor, true: Tensor) -> Tensor:
    return 3 * F.smooth_l1_loss(predicted, true, beta=0.2)


def _scores_figures(predicted: Tensor, true: Tensor) -> dict[str, float]:
    """Correlation of each dimension's scores."""
    both = [values.reshape(-1, len(DIMENSIONS)).T for values in (predicted, true)]
    return {name: float(torch.corrcoef(torch.stack([both[0][at], both[1][at]]))[0, 1]) for at, name in enumerate(DIMENSIONS)}


FACTS = {
    "area": Facts(("area", "area-rotated", "area-5-35"), _read_area, 1, _area_loss, _area_figures),
    "makeup": Facts(
        ("makeup", "makeup-lips"), _read_makeup, sum(4 + len(names) for names in REGIONS.values()), _makeup_loss, _makeup_figures
    ),
    "emotion": Facts(("emotion",), _read_emotion, len(EMOTIONS) + len(UNITS), _emotion_loss, _emotion_figures),
    "preference": Facts(("preference",), _read_scores, 2 * len(DIMENSIONS), _scores_loss, _scores_figures),
}
