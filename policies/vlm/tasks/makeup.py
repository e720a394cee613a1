"""Makeup extraction: the colours (and shapes) of a look as JSON (JuneJe0n/MakeupExtractor).

`TASK` reads `<answer>[{"shape": ..., "color": "#RRGGBB"}, ...]</answer>`, up to 3 items, none for a bare face; `LIPS` reads
`<answer>{"color": "#RRGGBB"}</answer>`.

The colour score is `max(0, 1 - dE76 / 100)` in CIELAB. `paper` rewards as published (utils/reward.py and reward_lips.py of the source):
.3 for form (.3 tags, .3 JSON, .4 items or colour; each at least .2) + 1.0 for accuracy (.2 where unreadable). Two things differ: any
string is a shape, since the renderer here has more than the source's three; and a truth may be empty. Bare faces are unknown to the source:
there, an empty list is unparseable (.332 in all), whatever the truth, and makeup named on a bare face earns its form alone (.3). Three
faults of theirs are repaired in `fixed`: F1 over matches of S >= .6 saturates (one colour matches everything), garbage outscores some
answers, hex digits are never checked. There, accuracy is a soft F1 (matches weighted by S, optimal assignment), and it counts only where
the answer is well formed throughout; a lipstick earns its colour score alone.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from policies.vlm.tasks.makeup_scores import (
    HEX,
    Item,
    best_lipstick,
    best_looks,
    color_metrics,
    color_score,
    greedy_f1,
    look_metrics,
    published_color_score,
    soft_f1,
)
from portraitkit.errors import DataError
from portraitkit.files.jsonl import no_constant, no_twins
from portraitkit.vlm.task import Mode, Score, Task
from preference_data import makeup_prompts as prompts

WHOLE = re.compile(r"\s*<answer>((?:(?!</?answer>).)*)</answer>\s*", re.DOTALL)
PAPER_FLOOR = 0.2


def _score_look(completion: str, truth: list[Item], mode: Mode) -> Score:
    """`paper`: tags count around a list only; what is no list of objects is unparseable; every object of a list is matched."""
    if mode == "fixed":
        return _repaired_look(completion, truth)
    value, tagged = _read_published(completion, "[]")
    items: list[Any] = value if isinstance(value, list) and all(isinstance(item, dict) for item in value) else []
    good = [_has_color(item) and isinstance(item.get("shape"), str) for item in items]
    form = _published_form(tagged, bool(items), sum(1.0 if ok else PAPER_FLOOR for ok in good) / len(good) if good else PAPER_FLOOR)
    accuracy = greedy_f1(items, truth) if items else PAPER_FLOOR
    return Score(form + accuracy, {"format": form, "accuracy": accuracy}, _parsed(items, good))


def _published_lips(completion: str, truth: str) -> Score:
    """The same around an object with a color; only a color with # is compared."""
    value, tagged = _read_published(completion, "{}")
    found = isinstance(value, dict) and "color" in value
    good = found and _has_color(value)
    form = _published_form(tagged, found, 1.0 if good else PAPER_FLOOR)
    accuracy = published_color_score(value["color"], truth) if good else PAPER_FLOOR
    return Score(form + accuracy, {"format": form, "color": accuracy}, {"color": value["color"]} if good else None)


def _published_form(tagged: bool, found: bool, schema: float) -> float:
    return 0.3 * (0.3 * (1.0 if tagged else PAPER_FLOOR) + 0.3 * (1.0 if found else PAPER_FLOOR) + 0.4 * schema)


def _read_published(completion: str, brackets: str) -> tuple[Any, bool]:
    """The JSON value in the tags, None where there is none, and whether tags with such brackets in them enclose the whole completion.

    What stands in a code fence is read, too. NaN is read as Python reads it.
    """
    text = completion.strip()
    fenced = text.startswith("```") and text.endswith("```")
    if fenced:
        text = "\n".join(text.split("\n")[1:-1]).strip()
    if not (text.startswith("<answer>") and text.endswith("</answer>")):
        return None, False
    body = text.removeprefix("<answer>").removesuffix("</answer>").strip()
    if not (body.startswith(brackets[0]) and body.endswith(brackets[1])):
        return None, False
    return _read_json(body, parse_constant=float)[0], not fenced


def _has_color(item: dict[str, Any]) -> bool:
    """As published: a # and six characters, whatever they are."""
    color = item.get("color")
    return isinstance(color, str) and color.startswith("#") and len(color) == 7


def _repaired_look(completion: str, truth: list[Item]) -> Score:
    tagged = WHOLE.fullmatch(completion)
    answer, is_json = _read_json(tagged[1] if tagged else completion, **STRICT)
    items: list[Any] = answer if isinstance(answer, list) else []
    good = [_is_item(item) for item in items]
    fits = isinstance(answer, list) and len(answer) <= 3
    schema = (sum(good) / len(good) if good else 1.0) if fits else 0.0
    form = 0.3 * bool(tagged) + 0.3 * is_json + 0.4 * schema
    accuracy = soft_f1(items, truth) if tagged and fits and all(good) else 0.0
    parsed = _parsed(items, good) if items or not fits else []
    return Score(0.3 * form + accuracy, {"format": 0.3 * form, "accuracy": accuracy}, parsed)


def _parsed(items: Sequence[Any], good: Sequence[bool]) -> list[Item] | None:
    """Shape and color of the items that have both: what else an answer holds may be no JSON when written again, as 1e400."""
    return [{name: item[name] for name in ("shape", "color")} for item, ok in zip(items, good, strict=True) if ok] or None


def _score_lips(completion: str, truth: list[Item], mode: Mode) -> Score:
    if mode == "paper":
        return _published_lips(completion, truth[0]["color"])
    tagged = WHOLE.fullmatch(completion)
    answer = _read_json(tagged[1], **STRICT)[0] if tagged else None
    color = answer.get("color") if isinstance(answer, dict) else None
    if not isinstance(color, str) or HEX.fullmatch(color) is None:
        return Score(0.0, {"color": 0.0}, None)
    value = color_score(color, truth[0]["color"])
    return Score(value, {"color": value}, {"color": color})


def read_look(completion: str) -> list[Item] | None:
    """The items of an answer to `TASK` as `fixed` reads it: the form is kept throughout, with up to 3 items; None where it is not."""
    tagged = WHOLE.fullmatch(completion)
    items = _read_json(tagged[1], **STRICT)[0] if tagged else None
    if not isinstance(items, list) or len(items) > 3:
        return None
    return items if all(_is_item(item) for item in items) else None


def read_lips(completion: str, truth: Sequence[Item]) -> list[Item] | None:
    """The item that an answer to `LIPS` stands for, in the shape of the truth, since none was asked for; None where unreadable."""
    parsed = _score_lips(completion, list(truth), "fixed").parsed
    return None if parsed is None else [{"shape": truth[0]["shape"], "color": parsed["color"]}]


def _make_row(split: str, seed: int, *, lips_only: bool = False) -> dict[str, Any]:
    from policies.vlm.tasks.synthetic_rows import makeup_row  # torch: scoring needs none

    return makeup_row(split, seed, lips_only=lips_only)


def _write_look(items: Sequence[Item]) -> str:
    return f"<answer>{json.dumps([{'shape': item['shape'], 'color': item['color']} for item in items])}</answer>"


def _read_json(text: str, **strict: Any) -> tuple[Any, bool]:
    """The JSON value in a text, and whether there is one; NaN and Infinity (unless told otherwise) and deep nesting are not read."""
    try:
        return json.loads(text, **{"parse_constant": no_constant, **strict}), True
    except (ValueError, RecursionError, DataError):
        return None, False


def _finite(text: str) -> float:
    return value if math.isfinite(value := float(text)) else no_constant(text)


STRICT: dict[str, Any] = {"object_pairs_hook": no_twins, "parse_float": _finite}
"""`fixed` reads an answer as rows are read: a key given twice says two things, and 1e999 is no number."""


def _is_item(item: object) -> bool:
    if not (isinstance(item, dict) and isinstance(item.get("shape"), str) and isinstance(item.get("color"), str)):
        return False
    return HEX.fullmatch(item["color"]) is not None


def _most(truth: list[Item], mode: Mode) -> float:
    return TASK.ranges[mode][1] if truth else _score_look(_write_look([]), truth, mode).reward


def _read_truth(row: Mapping[str, Any], *, least: int = 0) -> list[Item]:
    solution = row.get("solution")
    if not isinstance(solution, list) or not least <= len(solution) <= 3:
        raise DataError(f'solution: must be a list of {least} to 3 items such as {{"shape": "LIP_FULL_BASIC", "color": "#B03050"}}')
    for item in solution:
        if not _is_item(item):
            raise DataError(f"solution item {item!r}: needs a string shape and a color of the form #RRGGBB")
    return solution


TASK = Task(
    name="makeup",
    prompt=prompts.MAKEUP,
    read_truth=_read_truth,
    score=_score_look,
    ranges={"paper": (0.132, 1.3), "fixed": (0.0, 1.3)},
    perfect=_write_look,
    make_row=_make_row,
    brief="Makeup?",
    metrics=lambda completions, truths: look_metrics([read_look(completion) for completion in completions], truths),
    most=_most,
    constants=lambda truths, mode: [_write_look(look) for look in ([], *best_looks(truths, mode))],
)

LIPS = Task(
    name="makeup-lips",
    prompt=prompts.LIPS,
    read_truth=partial(_read_truth, least=1),
    score=_score_lips,
    ranges={"paper": (0.228, 1.3), "fixed": (0.0, 1.0)},
    perfect=lambda truth: f"<answer>{json.dumps({'color': truth[0]['color']})}</answer>",
    make_row=partial(_make_row, lips_only=True),
    brief="Lipstick?",
    metrics=lambda completions, truths: color_metrics(list(map(read_lips, completions, truths)), truths),
    constants=lambda truths, mode: [f'<answer>{{"color": "{best_lipstick(truths)}"}}</answer>'],
)
