"""Facial emotion with action units (RobitsG/Facial-R1, arXiv 2511.10254, v1; withdrawn since by its first author).

`R = R_AU + R_acc + R_format`: F1 of the action units named inside `<think>`, 0 or 1 for the emotion, 0 or 1 for the structure.
`paper` keeps what their code does beside the formula: the last answer counts (without tags the whole text) and is compared with its case,
a unit is `AU` and digits on upper-cased text, a row without an emotion earns a constant .5, and a row without action units earns 0
for them. `fixed`: case is folded, what a row does not label is not scored
(None; a unit that nobody coded is neither right nor wrong), and nothing counts unless the whole completion has the form that the
prompt asks for.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from policies.vlm.tasks.emotion_metrics import UNIT, WHOLE, Expression, headline, published_form, read_rewarded
from portraitkit.errors import ConfigError, DataError
from portraitkit.vlm.task import Mode, Score, Task
from preference_data.emotion_rows import ACTION_UNITS, DEFINITIONS, parse_truth, unknown_units


def emotion_task(*, signed: bool = False, rarity: Mapping[int, int] | None = None) -> Task:
    """The task.

    Args:
        signed: `2 F1 - 1` instead of F1 for the action units, as their code has it.
        rarity: how many rows of the data show each unit, as {12: 9000, 9: 400}: units then count in F1 by the inverse of that, in the
            source's proportions (which weighs whole rows, see docs/emotion.md); a unit that is left out counts as the rarest one.

    Raises:
        ConfigError: a count is not above 0.
    """
    if rarity is not None and (not rarity or any(count <= 0 for count in rarity.values())):
        raise ConfigError(f"rarity {dict(rarity)}: must give each unit the number of rows that show it, above 0; leave the others out")
    weights = None if rarity is None else {unit: 1 / count for unit, count in rarity.items()}

    def score(completion: str, truth: Expression, mode: Mode) -> Score:
        if mode == "paper":
            formed = published_form(completion)
            named, word = read_rewarded(completion)
        else:
            whole = WHOLE.fullmatch(completion)
            formed = whole is not None
            reasoning, word = (whole[1], whole[2].lower()) if whole else ("", "")
            named = frozenset(int(number) for number in UNIT.findall(reasoning))
        value = f1(named if mode == "paper" else named - truth.unknown, truth.units or frozenset(), weights)
        value = value if formed or mode == "paper" else 0.0
        units = 2 * value - 1 if signed else value
        if not truth.units and (mode == "paper" or truth.units is None):
            units = 0.0 if mode == "paper" else None
        unlabelled = 0.5 if mode == "paper" else None
        accuracy = unlabelled if truth.emotion is None else float(word == truth.emotion)
        parts = {"action_units": units, "emotion": accuracy, "format": float(formed)}
        said = [unit if isinstance(unit, str) else f"AU{unit}" for unit in sorted(named, key=_order)]
        parsed = {"AUs": said, "label": word} if word or named else None
        return Score(sum(value for value in parts.values() if value is not None), parts, parsed)

    low = -1.0 if signed else 0.0
    return Task(
        name="emotion",
        prompt=_prompt(),
        read_truth=_read_truth,
        score=score,
        ranges={"paper": (low, 3.0), "fixed": (low, 3.0)},
        perfect=_perfect,
        metrics=headline,
        make_row=_make_row,
        brief="Emotion?",
        most=_most,
        constants=lambda truths, mode: [_perfect(expression) for expression in best_expressions(truths)],
        whole=lambda truth: truth.units is not None and truth.emotion is not None and not truth.unknown,
    )


def f1(named: frozenset[int | str], truth: frozenset[int], weights: Mapping[int, float] | None = None) -> float:
    """F1 of two sets, in which units count by their weights if given; 1 where both are empty, 0 where one is."""
    if not named and not truth:
        return 1.0

    def total(units: frozenset[int | str]) -> float:
        return len(units) if weights is None else sum(weights.get(unit, max(weights.values())) for unit in sorted(units, key=_order))

    return 2 * total(named & truth) / (total(named) + total(truth))


def _order(unit: int | str) -> tuple[bool, int | str]:
    return isinstance(unit, str), unit


def _read_truth(row: Mapping[str, Any]) -> Expression:
    if row.get("AUs") is None and row.get("labels") is None:
        raise DataError("needs AUs, labels or both")
    units, labels = parse_truth(row)
    numbers = None if units is None else frozenset(int(unit.removeprefix("AU")) for unit in units)
    return Expression(numbers, labels[0] if labels else None, unknown_units(row))


def _prompt() -> str:
    units = "; ".join(f"AU{number} {name} ({seen})" for number, (name, seen) in DEFINITIONS.items())
    return (
        "Which emotion does this face show, and which facial action units show it? Inside <think></think> write one short paragraph that "
        'names each action unit you see by its number, as in "(AU4)", and says how together they point to one emotion; state it without '
        "hedging. Then give that emotion as one word inside <answer></answer>: anger, contempt, disgust, fear, happiness, neutral, "
        f"sadness or surprise. The action units: {units}."
    )


def _perfect(truth: Expression) -> str:
    named = " ".join(f"(AU{unit})" for unit in sorted(truth.units or ()))
    return f"<think>{named}</think><answer>{truth.emotion or 'neutral'}</answer>"


def _most(truth: Expression, mode: Mode) -> float:
    """The form, and what the row labels; as published, a row without a unit that shows earns 0 for units, one without an emotion .5."""
    if mode == "paper":
        return 1.0 + bool(truth.units) + (0.5 if truth.emotion is None else 1.0)
    return 1.0 + (truth.units is not None) + (truth.emotion is not None)


def best_expressions(truths: Sequence[Expression]) -> list[Expression]:
    """One answer for each number of units, among which the best constant one is: units and emotion are rewarded apart.

    F1 against a row is a sum over the units named once their number k is given, each that is right adding `2 / (k + units of the row)`: so
    the best k units are the k with the largest sums. The best emotion is the most frequent one.
    """
    emotions = Counter(truth.emotion for truth in truths if truth.emotion is not None)
    emotion = max(emotions, key=lambda name: emotions[name]) if emotions else None
    labelled = [truth.units for truth in truths if truth.units is not None]
    found = []
    for count in range(len(ACTION_UNITS) + 1):
        worth = {unit: sum(2 / (count + len(units)) for units in labelled if unit in units) for unit in ACTION_UNITS}
        found.append(Expression(frozenset(sorted(worth, key=lambda unit: -worth[unit])[:count]), emotion))
    return found


def _make_row(split: str, seed: int) -> dict[str, Any]:
    from policies.vlm.tasks.synthetic_rows import emotion_row  # torch: scoring needs none

    return emotion_row(split, seed)


TASK = emotion_task()
