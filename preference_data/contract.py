"""The answer contract of judges and annotators: the prompt, how an answer is written, and the one strict way it is read.

<think> reasoning </think>
<answer>
Skin smoothing: Image1 = 4, Image2 = 2
... the other four, in the order of DIMENSIONS ...
Average: Image1 = 4.2, Image2 = 3.0
Image1 is better
</answer>

A tiny judge with few tokens answers in a short form, two numbers for each dimension, the scores of Image1 and Image2:

<think>smooth 4 2 blemish 5 3 texture 4 4 clarity 3 3 identity 5 5</think><answer>1</answer>
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from preference_data.schema import DIMENSIONS, JUDGING, QUESTIONS, TITLES
from preference_data.verdict import NUMBERS, PLACES, Order, Place, Verdict, file_at, in_order, turned, winner

SHAPE = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
LINE = re.compile(r"(.+?): Image1 = (\d{1,9}), Image2 = (\d{1,9})", re.ASCII)
AVERAGES = re.compile(r"Average: Image1 = (\d+(?:\.\d+)?), Image2 = (\d+(?:\.\d+)?)", re.ASCII)
BETTER = re.compile(r"Image([12]) is better\.?")
BRIEF_WORDS: dict[str, str] = {name: said["word"] for name, said in JUDGING["dimensions"].items()}
BRIEF_PROMPT = "Which retouch is better?"
BRIEF_SCORES = r"\s+".join(rf"{word}\s+([1-5])\s+([1-5])" for word in BRIEF_WORDS.values())
BRIEF_SHAPE = re.compile(rf"\s*<think>\s*{BRIEF_SCORES}\s*</think>\s*<answer>\s*([12])\s*</answer>\s*")


def prompt() -> str:
    """What a judge is asked; the pictures are sent before it in the order photo, Image1, Image2."""
    questions = "\n".join(f"- {TITLES[name]}: {QUESTIONS[name]}" for name in DIMENSIONS)
    lines = "\n".join(f"{TITLES[name]}: Image1 = s, Image2 = s" for name in DIMENSIONS)
    return JUDGING["prompt"].format(questions=questions, lines=lines)


MAKEUP_TITLES = {"identity": "Makeup"}
"""The one line of an answer about a makeup pair: two attempts at a made-up photo differ in nothing else, and makeup is among the personal
features that `identity` asks for."""


def makeup_prompt() -> str:
    """What a judge is asked about a makeup pair; the pictures are sent before it in the order photo, Image1, Image2."""
    return JUDGING["makeup_prompt"]


@dataclass(frozen=True)
class Answer:
    """A judge's answer about Image1 and Image2."""

    scores: dict[str, tuple[int, int]]  # dimension -> scores of Image1 and Image2, 1 to 5
    better: Place  # the place of the better one
    reasoning: str  # what was thought

    @property
    def averages(self) -> tuple[float, float]:
        """Mean scores of Image1 and Image2."""
        first, second = (sum(both[side] for both in self.scores.values()) / len(self.scores) for side in (0, 1))
        return first, second

    @property
    def coherent(self) -> bool:
        """Whether the better one's average is not the lower one."""
        first, second = self.averages
        return first >= second if self.better == "first" else second >= first

    def exchanged(self) -> "Answer":
        """The same answer with Image1 and Image2 exchanged, in words, too."""
        scores = {name: in_order(both, "ba") for name, both in self.scores.items()}
        return Answer(scores, "second" if self.better == "first" else "first", turned(self.reasoning))


@dataclass(frozen=True)
class Unreadable:
    """An answer that breaks the contract: it is counted and kept, never scored."""

    reason: str
    text: str


def write_answer(answer: Answer, titles: Mapping[str, str] = TITLES) -> str:
    """The answer as the contract wants it; `read_answer` gives it back. One dimension alone has no line of averages."""
    lines = [f"{title}: Image1 = {answer.scores[name][0]}, Image2 = {answer.scores[name][1]}" for name, title in titles.items()]
    first, second = answer.averages
    lines += [f"Average: Image1 = {first:.1f}, Image2 = {second:.1f}"] * (len(titles) > 1) + [f"Image{NUMBERS[answer.better]} is better"]
    return f"<think>{answer.reasoning}</think>\n<answer>\n" + "\n".join(lines) + "\n</answer>"


def read_answer(text: str, titles: Mapping[str, str] = TITLES) -> Answer | Unreadable:
    """Read an answer, strictly: every part once, in its place, every number in range, averages that are the averages.

    Blank lines and spaces around lines are allowed, nothing else. `titles`: dimension -> the title of its line, in order.
    """
    once = all(text.count(tag) == 1 for tag in ("<think>", "</think>", "<answer>", "</answer>"))
    match = SHAPE.fullmatch(text) if once else None
    if match is None:
        return Unreadable("not one <think>..</think> followed by one <answer>..</answer> and nothing else", text)
    lines = [line.strip() for line in match[2].splitlines() if line.strip()]
    expected = len(titles) + (2 if len(titles) > 1 else 1)
    if len(lines) != expected:
        return Unreadable(f"{len(lines)} lines in the answer, {expected} expected", text)
    scores: dict[str, tuple[int, int]] = {}
    for (name, title), line in zip(titles.items(), lines, strict=False):
        fields = LINE.fullmatch(line)
        if fields is None or fields[1].casefold() != title.casefold():
            return Unreadable(f"expected '{title}: Image1 = s, Image2 = s', found {line[:80]!r}", text)
        first, second = int(fields[2]), int(fields[3])
        if not (1 <= first <= 5 and 1 <= second <= 5):
            return Unreadable(f"a score outside 1 to 5: {line[:80]!r}", text)
        scores[name] = (first, second)
    averages, better = AVERAGES.fullmatch(lines[-2]), BETTER.fullmatch(lines[-1])
    if better is None or (averages is None and len(titles) > 1):
        return Unreadable("the last two lines must be the averages and 'Image1 is better' or 'Image2 is better'", text)
    answer = Answer(scores, PLACES[int(better[1])], match[1].strip())
    if averages is not None and any(abs(float(averages[side + 1]) - mean) > 0.051 for side, mean in enumerate(answer.averages)):
        return Unreadable(f"{lines[-2]!r} are not the averages of the scores", text)
    return answer


def verdicts_in_files(answer: Answer, order: Order) -> tuple[dict[str, Verdict], Verdict, dict[str, tuple[float, float]]]:
    """Verdicts, overall verdict and scores about a and b, from an answer about Image1 and Image2 shown in `order`."""
    scores = {name: in_order((float(first), float(second)), order) for name, (first, second) in answer.scores.items()}
    verdicts: dict[str, Verdict] = {name: winner(a, b) for name, (a, b) in scores.items()}
    return verdicts, file_at(answer.better, order), scores


def write_brief(answer: Answer) -> str:
    """The answer in short; `read_brief` gives it back but for its reasoning, whose place the scores take."""
    scores = " ".join(f"{BRIEF_WORDS[name]} {answer.scores[name][0]} {answer.scores[name][1]}" for name in DIMENSIONS)
    return f"<think>{scores}</think><answer>{NUMBERS[answer.better]}</answer>"


def every_digit() -> list[str]:
    """Five short answers that together have each digit at each place that takes it: what a decoder must keep to."""
    return [write_brief(Answer(dict.fromkeys(DIMENSIONS, (digit, digit)), PLACES[min(digit, 2)], "")) for digit in range(1, 6)]


def read_brief(text: str) -> Answer | Unreadable:
    """Read an answer in the short form, strictly."""
    match = BRIEF_SHAPE.fullmatch(text)
    if match is None:
        return Unreadable("not <think>smooth s s blemish s s texture s s clarity s s identity s s</think><answer>1 or 2</answer>", text)
    numbers = [int(digit) for digit in match.groups()]
    scores = {name: (numbers[2 * place], numbers[2 * place + 1]) for place, name in enumerate(DIMENSIONS)}
    return Answer(scores, PLACES[numbers[-1]], text[text.index("<think>") + 7 : text.index("</think>")].strip())
