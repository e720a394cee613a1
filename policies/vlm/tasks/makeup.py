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
from typing import Any

from policies.vlm.tasks.makeup_scores import HEX, Item, color_score, greedy_f1, soft_f1
from portraitkit.errors import DataError
from portraitkit.vlm.task import Mode, Score, Task
from preference_data import makeup_prompts as prompts

TAGS = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
WHOLE = re.compile(r"\s*<answer>((?:(?!</?answer>).)*)</answer>\s*", re.DOTALL)
PAPER_FLOOR = 0.2


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


def read_look(completion: str) -> list[Item] | None:
    """The items of an answer to `TASK` as `fixed` reads it: the form is kept throughout, with 1 to 3 items; None where it is not."""
    tagged = WHOLE.fullmatch(completion)
    items = _read_json(tagged[1])[0] if tagged else None
    if not isinstance(items, list) or not 1 <= len(items) <= 3:
        return None
    return items if all(_is_item(item, check_hex=True) for item in items) else None


def read_lips(completion: str, truth: Sequence[Item]) -> list[Item] | None:
    """The item that an answer to `LIPS` stands for, in the shape of the truth, since none was asked for; None where unreadable."""
    parsed = _score_lips(completion, list(truth), "fixed").parsed
    return None if parsed is None else [{"shape": truth[0]["shape"], "color": parsed["color"]}]


def _make_row(split: str, seed: int) -> dict[str, Any]:
    from policies.vlm.tasks.makeup_rows import make_row

    return make_row(split, seed)


def _make_lips_row(split: str, seed: int) -> dict[str, Any]:
    from policies.vlm.tasks.makeup_rows import make_row

    return make_row(split, seed, lips_only=True)


def _metrics(completions: Sequence[str], truths: Sequence[Any]) -> dict[str, float]:
    from policies.vlm.tasks.makeup_metrics import look_metrics

    return look_metrics([read_look(completion) for completion in completions], truths)


def _lips_metrics(completions: Sequence[str], truths: Sequence[Any]) -> dict[str, float]:
    from policies.vlm.tasks.makeup_metrics import color_metrics

    return color_metrics([read_lips(completion, truth) for completion, truth in zip(completions, truths, strict=True)], truths)


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
    prompt=prompts.MAKEUP,
    read_truth=_read_truth,
    score=_score_look,
    ranges={"paper": (0.132, 1.3), "fixed": (0.0, 1.3)},
    perfect=lambda truth: f"<answer>{json.dumps([{'shape': item['shape'], 'color': item['color']} for item in truth])}</answer>",
    make_row=_make_row,
    brief="Makeup?",
    metrics=_metrics,
)

LIPS = Task(
    name="makeup-lips",
    prompt=prompts.LIPS,
    read_truth=_read_truth,
    score=_score_lips,
    ranges={"paper": (0.0, 1.0), "fixed": (0.0, 1.0)},
    perfect=lambda truth: f"<answer>{json.dumps({'color': truth[0]['color']})}</answer>",
    make_row=_make_lips_row,
    brief="Lipstick?",
    metrics=_lips_metrics,
)
