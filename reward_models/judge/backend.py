"""What a judge needs of a model, and how its choice of digits is read: one small protocol, one file a backend."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from portraitkit.vlm.generate import Choice
from preference_data.contract import BRIEF_SHAPE
from preference_data.schema import DIMENSIONS

Picture = Float[Tensor, "3 h w"]
DIGITS = "12345"
MOST_SURE = 12.0  # Largest log-odds that a choice of tokens is taken for; beyond it lies float32's rounding


@dataclass(frozen=True)
class Said:
    """What a model answered."""

    text: str | None  # the answer, or None
    error: str = ""  # why there is none; empty if there is
    choices: tuple[Choice, ...] = ()  # of tokens in order, where the backend gives them; at least those of the answer's digits
    cut: bool = False  # the token limit ended the answer, where the backend says so
    tokens: tuple[int, int] = (0, 0)  # of the question with its pictures, and of the answer; 0 where the backend does not say


@runtime_checkable
class Backend(Protocol):
    """A model behind a judge."""

    name: str

    def ask(self, prompt: str | Sequence[str], shown: Sequence[tuple[Picture, ...]], max_tokens: int) -> list[Said]:
        """Greedy answers to the prompt, the same for all or one each, about each tuple of pictures (RGB in [0, 1]), which are shown before
        it, in order."""
        ...


@dataclass(frozen=True)
class Certainty:
    """How sure an answer is of its digits."""

    log_odds: float  # of the answer 1 against 2, within `MOST_SURE`
    scores: dict[str, tuple[float, float]]  # dimension -> expected scores of the pictures shown first and second, in [1, 5]


def read_certainty(text: str, choices: Sequence[Choice], names: Sequence[str] = DIMENSIONS) -> Certainty | None:
    """The probabilities behind the digits of a readable answer.

    Args:
        text: that one of the contracts can read.
        choices: tokens of the text that hold a digit, at least; others are ignored.
        names: of the dimensions that it scores, in order.

    Returns:
        None where the tokens are not there, hold several digits each, or are not those of the text.
    """
    tokens = [token for token in choices for char in token[0] if char.isdecimal()]
    places = [place for place, char in enumerate(text) if char.isdecimal()]
    wanted = _digits_of(text, len(names))
    found: list[Choice] = []
    for place in wanted:
        behind = len(places) - places.index(place)
        if behind > len(tokens):
            return None
        token = tokens[-behind]
        if sum(char.isdecimal() for char in token[0]) != 1 or text[place] not in token[0]:
            return None
        found.append((text[place], _by_digit(token, text[place])))
    expected = [_expected(chances) for _, chances in found[:-1]]
    scores = {name: (expected[2 * place], expected[2 * place + 1]) for place, name in enumerate(names)}
    first, second = (found[-1][1].get(digit, -math.inf) for digit in "12")
    odds = 0.0 if math.isinf(first) and math.isinf(second) else first - second
    return Certainty(max(-MOST_SURE, min(MOST_SURE, odds)), scores)


def _digits_of(text: str, count: int) -> list[int]:
    """Places in a readable answer of its two scores on each of `count` dimensions, and of the 1 or 2 that it chooses."""
    brief = BRIEF_SHAPE.fullmatch(text)
    if brief is not None:
        return [brief.start(group) for group in range(1, 2 * len(DIMENSIONS) + 2)]
    start = text.index("<answer>")
    pairs = list(re.finditer(r"Image1 = (\d), Image2 = (\d)", text[start:]))[:count]
    chosen = list(re.finditer(r"Image([12]) is better", text[start:]))[-1]
    return [start + pair.start(group) for pair in pairs for group in (1, 2)] + [start + chosen.start(1)]


def _by_digit(token: Choice, digit: str) -> dict[str, float]:
    """Digit -> log-probability of the same token with that digit in it; digits that are not told are left out."""
    text, chances = token
    return {other: chances[key] for other in DIGITS if (key := text.replace(digit, other)) in chances}


def _expected(chances: dict[str, float]) -> float:
    weights = {int(digit): math.exp(log) for digit, log in chances.items()}
    total = sum(weights.values())
    return sum(value * weight for value, weight in weights.items()) / total
