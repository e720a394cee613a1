"""The best constant answer of the emotion task: the units and the emotion that a policy would name that looks at no picture."""

from collections import Counter
from collections.abc import Sequence

from policies.vlm.tasks.emotion import Expression
from preference_data.emotion_rows import ACTION_UNITS


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
