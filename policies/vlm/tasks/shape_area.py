"""Area of a plotted shape: read the size off the axes and compute (tsnewnami/vlm-area).

`paper` rewards as published: correctness `3 - 6 min(1, |p - a| / max(a, 32))`, or -3 where no two-decimal number stands in answer
tags; +.5 for that number and +.5 for reasoning followed by an answer, each found anywhere. `fixed`: everything counts only
where the whole completion has the form that the prompt asks for.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from portraitkit.errors import DataError
from portraitkit.vlm.task import Mode, Score, Task

FLOOR = 32.0
NUMBER = re.compile(r"<answer>\s*(\d+\.\d{2})\s*</answer>")


def area_task(think_tag: str = "reasoning", *, floor: float = FLOOR) -> Task:
    """The task with another reasoning tag (one setting for prompt and parser) or another floor under the error's denominator.

    Args:
        think_tag: name of the tag around the reasoning: the source says reasoning in its code and think in its write-up.
        floor: the relative error is `|p - a| / max(a, floor)`; 0 makes it relative to the area alone.
    """
    anywhere = re.compile(rf"<{think_tag}>.*?</{think_tag}>\s*<answer>.*?</answer>", re.DOTALL)
    body = rf"(?:(?!</?(?:{think_tag}|answer)>).)*"
    whole = re.compile(rf"\s*<{think_tag}>{body}</{think_tag}>\s*<answer>\s*\d+\.\d{{2}}\s*</answer>\s*", re.DOTALL)

    def score(completion: str, area: float, mode: Mode) -> Score:
        number = NUMBER.search(completion)
        readable = number is not None and (mode == "paper" or whole.fullmatch(completion) is not None)
        if mode == "paper":
            form = {"two_decimals": 0.5 if number else 0.0, "structure": 0.5 if anywhere.search(completion) else 0.0}
        else:
            form = {"two_decimals": 0.5 if readable else 0.0, "structure": 0.5 if readable else 0.0}
        value = float(number[1]) if number and readable else None
        correctness = -3.0 if value is None else 3 - 6 * min(1.0, abs(value - area) / max(area, floor))
        parts: dict[str, float | None] = {"correctness": correctness, **form}
        return Score(correctness + sum(form.values()), parts, value)

    prompt = (
        "The plot shows one filled shape on axes with unit ticks of 5. Read its dimensions off the axes and compute its area. Explain "
        f"your steps inside <{think_tag}></{think_tag}>, then give the area with exactly two decimals inside <answer></answer>."
    )
    return Task(
        name="area",
        prompt=prompt,
        read_truth=_read_truth,
        score=score,
        ranges={"paper": (-3.0, 4.0), "fixed": (-3.0, 4.0)},
        perfect=lambda area: f"<{think_tag}>read off the axes</{think_tag}><answer>{area:.2f}</answer>",
    )


def _read_truth(row: Mapping[str, Any]) -> float:
    area = row.get("area")
    if isinstance(area, bool) or not isinstance(area, int | float) or not math.isfinite(area) or area <= 0:
        raise DataError(f"area {area!r}: must be a number above 0")
    return float(area)


TASK = area_task()
