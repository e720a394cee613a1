"""The short form of the answer contract, which a tiny judge with few tokens can hold.

<think>smooth 4 2 blemish 5 3 texture 4 4 clarity 3 3 identity 5 5</think><answer>1</answer>

Two numbers for each dimension: the scores of the first and of the second candidate.
"""

import re

from preference_data.contract import Answer, Unreadable
from preference_data.schema import DIMENSIONS
from preference_data.verdict import NUMBERS, PLACES

WORDS = dict(zip(DIMENSIONS, ("smooth", "blemish", "texture", "clarity", "identity"), strict=True))
PROMPT = "Which retouch is better?"
SCORES = r"\s+".join(rf"{word}\s+([1-5])\s+([1-5])" for word in WORDS.values())
WHOLE = re.compile(rf"\s*<think>\s*{SCORES}\s*</think>\s*<answer>\s*([12])\s*</answer>\s*")


def write_brief(answer: Answer) -> str:
    """The answer in short; `read_brief` gives it back but for its reasoning, whose place the scores take."""
    scores = " ".join(f"{WORDS[name]} {answer.scores[name][0]} {answer.scores[name][1]}" for name in DIMENSIONS)
    return f"<think>{scores}</think><answer>{NUMBERS[answer.better]}</answer>"


def every_digit() -> list[str]:
    """Five answers that together have each digit at each place that takes it: what a decoder must keep to."""
    return [write_brief(Answer(dict.fromkeys(DIMENSIONS, (digit, digit)), PLACES[min(digit, 2)], "")) for digit in range(1, 6)]


def read_brief(text: str) -> Answer | Unreadable:
    """Read an answer in the short form, strictly."""
    found = WHOLE.fullmatch(text)
    if found is None:
        return Unreadable("not <think>smooth s s blemish s s texture s s clarity s s identity s s</think><answer>1 or 2</answer>", text)
    numbers = [int(digit) for digit in found.groups()]
    scores = {name: (numbers[2 * place], numbers[2 * place + 1]) for place, name in enumerate(DIMENSIONS)}
    return Answer(scores, PLACES[numbers[-1]], text[text.index("<think>") + 7 : text.index("</think>")].strip())
