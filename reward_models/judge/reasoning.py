"""Reasoning in words: written where nobody gave any, and checked against the scores that follow it."""

import re
from itertools import pairwise

from preference_data.contract import Answer
from preference_data.schema import DIMENSIONS, TITLES
from preference_data.verdict import NUMBERS

DEGREES = {
    5: "as a careful professional would do it",
    4: "good, with a slight fault",
    3: "with a fault that is seen at once",
    2: "with a strong fault",
    1: "spoiled",
}
_BETWEEN = r"\s+(?:(?!(?:not|no|never|neither|image)\b)[\w-]+\s+){0,3}?"
CLAIM = re.compile(
    rf"\bimage\s?(?P<better>[12]){_BETWEEN}(?:better|best|superior|stronger|preferred|preferable|wins?|won)\b"
    rf"|\bimage\s?(?P<worse>[12]){_BETWEEN}(?:worse|worst|inferior|weaker|loses?|lost)\b"
    r"|\b(?:prefer|choose|favou?r)s?\s+image\s?(?P<chosen>[12])\b"
    r"|(?<!not )(?<!n't )\b(?P<alike>alike|equal(?:ly)?|no difference|the same)\b",
    re.IGNORECASE,
)
OVERALL = re.compile(
    r"(?:^|(?<=[.!?;]\s)|(?<=\n))(?:overall|in all|altogether|all in all|in the end|in conclusion|in short)\b[^.\n]*", re.IGNORECASE
)
"""A sentence that begins as verdicts do."""


def reason(answer: Answer) -> str:
    """One sentence a dimension and one overall, that say what the scores say.

    >>> from preference_data.schema import DIMENSIONS
    >>> reason(Answer(dict.fromkeys(DIMENSIONS, (5, 3)), "first", "")).splitlines()[-1]
    'Overall, Image1 is better.'
    """
    lines = []
    for name in DIMENSIONS:
        first, second = answer.scores[name]
        end = "both are alike" if first == second else f"Image{1 if first > second else 2} is better"
        lines.append(f"{TITLES[name]}: Image1 is {DEGREES[first]}, Image2 is {DEGREES[second]}; {end}.")
    return "\n".join([*lines, f"Overall, Image{NUMBERS[answer.better]} is better."])


def words_agree(answer: Answer) -> bool:
    """Whether what the reasoning claims about a dimension, and overall, is what the scores and the choice say.

    A claim is that one image is better, worse, preferred, wins or loses, or that both are alike, in these words and without a negation.
    After a dimension's title and a colon it is about that dimension, up to the next title; in a sentence that begins with "Overall" or
    the like, or where no title stands before it, about the choice. The last claim of a part counts; what is not claimed agrees.

    >>> wrong = Answer(dict.fromkeys(DIMENSIONS, (5, 3)), "first", "Clarity: Image2 is much better.")
    >>> words_agree(wrong)
    False
    """
    text = answer.reasoning
    verdicts = [found for sentence in OVERALL.findall(text) if (found := _claim(sentence)) is not None]
    text = OVERALL.sub("", text)
    places = sorted((at, name) for name in DIMENSIONS if (at := text.casefold().find(TITLES[name].casefold() + ":")) >= 0)
    before = _claim(text[: places[0][0]] if places else text)
    verdict = verdicts[-1] if verdicts else before
    if verdict is not None and verdict != (1 if answer.better == "first" else -1):
        return False
    for (start, name), (end, _) in pairwise([*places, (len(text), "")]):
        said = _claim(text[start:end])
        first, second = answer.scores[name]
        if said is not None and said != (first > second) - (first < second):
            return False
    return True


def _claim(text: str) -> int | None:
    """What the last claim says: 1 for the first image, -1 for the second, 0 alike; None without a claim."""
    claims = list(CLAIM.finditer(text))
    if not claims:
        return None
    last = claims[-1]
    if last["alike"]:
        return 0
    better = (last["better"] or last["chosen"]) == "1" or last["worse"] == "2"
    return 1 if better else -1
