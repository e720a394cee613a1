"""Reasoning in words: written where nobody gave any, and checked against the scores that follow it."""

import re

from preference_data.contract import Answer
from preference_data.schema import DIMENSIONS, TITLES

DEGREES = {
    5: "as a careful professional would do it",
    4: "good, with a slight fault",
    3: "with a fault that is seen at once",
    2: "with a strong fault",
    1: "spoiled",
}
CLAIM = re.compile(r"Image([12]) is better|\b(alike|equally|equal|no difference)\b", re.IGNORECASE)
OVERALL = re.compile(r"\b(?:overall|in all|altogether)\b[^.\n]*?Image([12]) is better", re.IGNORECASE)


def reason(answer: Answer) -> str:
    """One sentence a dimension and one overall, that say what the scores say.

    >>> from preference_data.schema import DIMENSIONS
    >>> reason(Answer(dict.fromkeys(DIMENSIONS, (5, 3)), 1, "")).splitlines()[-1]
    'Overall, Image1 is better.'
    """
    lines = []
    for name in DIMENSIONS:
        first, second = answer.scores[name]
        end = "both are alike" if first == second else f"Image{1 if first > second else 2} is better"
        lines.append(f"{TITLES[name]}: Image1 is {DEGREES[first]}, Image2 is {DEGREES[second]}; {end}.")
    return "\n".join([*lines, f"Overall, Image{answer.better} is better."])


def words_agree(answer: Answer) -> bool:
    """Whether what the reasoning claims about a dimension, and overall, is what the scores and the choice say.

    A claim is "ImageX is better" or "alike" after a dimension's title and before the next title; what is not claimed agrees.

    >>> wrong = Answer(dict.fromkeys(DIMENSIONS, (5, 3)), 1, "Clarity: Image2 is better.")
    >>> words_agree(wrong)
    False
    """
    overall = OVERALL.findall(answer.reasoning)
    if overall and int(overall[-1]) != answer.better:
        return False
    text = OVERALL.sub("", answer.reasoning)
    places = sorted((at, name) for name in DIMENSIONS if (at := text.casefold().find(TITLES[name].casefold() + ":")) >= 0)
    for place, (start, name) in enumerate(places):
        end = places[place + 1][0] if place + 1 < len(places) else len(text)
        claims = CLAIM.findall(text[start:end])
        if not claims:
            continue
        first, second = answer.scores[name]
        said = 0 if not claims[-1][0] else 1 if claims[-1][0] == "1" else -1
        if said != (first > second) - (first < second):
            return False
    return True
