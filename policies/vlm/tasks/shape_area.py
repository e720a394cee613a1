"""Area of a plotted shape: read the size off the axes and compute (tsnewnami/vlm-area).

`paper` rewards as published: correctness `3 - 6 min(1, |p - a| / max(a, 32))`, or -3 where no two-decimal number stands in answer
tags; +.5 for that number and +.5 for reasoning followed by an answer, each found anywhere. `fixed`: everything counts only
where the whole completion has the form that the prompt asks for.
"""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from portraitkit.errors import DataError
from portraitkit.vlm.task import Mode, Score, Task

FLOOR = 32.0
ANY_NUMBER = re.compile(r"<answer>\s*(\d+(?:\.\d+)?)\s*</answer>")
NUMBER = re.compile(r"<answer>\s*(\d+\.\d{2})\s*</answer>")  # As published: digits of any script. `fixed` asks for 0 to 9


def area_task(
    think_tag: str = "reasoning",
    *,
    floor: float = FLOOR,
    sizes: tuple[float, float] = (20.0, 35.0),
    max_angle: float = 0.0,
    name: str = "area",
) -> Task:
    """The task with another tag around the reasoning (one setting for prompt and parser; the source says reasoning in its code and think in
    its write-up), another floor of the relative error (0: relative to the area alone), or other shapes (see `draw_shape`)."""
    turn = re.compile(rf"</{think_tag}>\s*<answer>")
    body = rf"(?:(?!</?(?:{think_tag}|answer)>).)*"
    whole = re.compile(rf"\s*<{think_tag}>{body}</{think_tag}>\s*<answer>\s*[0-9]+\.[0-9]{{2}}\s*</answer>\s*", re.DOTALL)

    def score(completion: str, area: float, mode: Mode) -> Score:
        number = NUMBER.search(completion)
        readable = structured = number is not None and (mode == "paper" or whole.fullmatch(completion) is not None)
        if mode == "paper":  # whether `<think_tag>.*?</think_tag>\s*<answer>.*?</answer>` is found anywhere, in linear time
            start = completion.find(f"<{think_tag}>")
            turned = turn.search(completion, start) if start >= 0 else None
            structured = turned is not None and completion.find("</answer>", turned.end()) >= 0
        form = {"two_decimals": 0.5 * readable, "structure": 0.5 * structured}
        value = float(number[1]) if number and readable else None
        correctness = -3.0 if value is None else 3 - 6 * min(1.0, abs(value - area) / max(area, floor))
        parts: dict[str, float | None] = {"correctness": correctness, **form}
        return Score(correctness + sum(form.values()), parts, value if value is not None and math.isfinite(value) else None)

    def make_row(split: str, seed: int) -> dict[str, Any]:
        from policies.vlm.tasks.synthetic_rows import SIDE, draw_picture, draw_shape  # torch: scoring needs none

        shape = draw_shape(split, seed, sizes=sizes, max_angle=max_angle)
        share = 100 * shape.area / SIDE**2
        target = f"<{think_tag}>it covers {share:.1f} % of 50 x 50</{think_tag}><answer>{shape.area:.2f}</answer>"
        return {"image": draw_picture(shape), "area": shape.area, "kind": shape.kind, "target": target}

    prompt = (
        "The plot shows one filled shape on axes with unit ticks of 5. Read its dimensions off the axes and compute its area. Explain "
        f"your steps inside <{think_tag}></{think_tag}>, then give the area with exactly two decimals inside <answer></answer>."
    )
    return Task(
        name=name,
        prompt=prompt,
        read_truth=_read_truth,
        score=score,
        ranges={"paper": (-3.0, 4.0), "fixed": (-3.0, 4.0)},
        perfect=lambda area: f"<{think_tag}>read off the axes</{think_tag}><answer>{area:.2f}</answer>",
        make_row=make_row,
        brief="Area?",
        metrics=_metrics,
    )


def _metrics(completions: Sequence[str], areas: Sequence[float]) -> dict[str, float]:
    """Relative error |p - a| / a of what can be read (leniently: the first number in answer tags), and how much cannot."""
    read = [float(found[1]) if (found := ANY_NUMBER.search(completion)) else math.inf for completion in completions]
    errors = [abs(number - area) / area for number, area in zip(read, areas, strict=True) if number < math.inf]
    return {"relative_error": sum(errors) / len(errors) if errors else math.nan, "unreadable": 1 - len(errors) / len(completions)}


def _read_truth(row: Mapping[str, Any]) -> float:
    area = row.get("area")
    if isinstance(area, bool) or not isinstance(area, int | float) or not 0 < area < math.inf or area > sys.float_info.max:
        raise DataError(f"area {area!r:.40}: must be a number above 0")
    return float(area)


TASK = area_task()
ROTATED = area_task(max_angle=45.0, name="area-rotated")
WIDE = area_task(sizes=(5.0, 35.0), name="area-5-35")

PUBLISHED_CURVES = {"area": (0.5, 2.6), "area-rotated": (0.125, 2.3), "area-5-35": (0.15, 1.59)}
"""Reward in training at the start and after about 950 prompts, as the source reports it: Qwen2.5-VL-7B, `paper` rewards, temperature .6."""
