"""The judge's reward in GRPO: the task `preference` in its `fixed` mode, with a chosen check of coherence and the other order's verdict.

Parts: form .5, coherence up to .5, the right overall choice 1, the share of right dimensions 1, and with a weight above 0 the
position consistency: the weight where the overall choice names the same file as the greedy answer to the other order did, asked once
before the stage. That last one rewards agreement with an answer that may be wrong: keep its weight well below the 1 of a right choice.
"""

from dataclasses import dataclass

from portraitkit.vlm.task import Mode, Score, Task
from preference_data.contract import Unreadable
from preference_data.verdict import Shown
from reward_models.judge import preference_task
from reward_models.judge.coherence import Coherence, deterministic
from reward_models.judge.pairs import View
from reward_models.judge.preference_task import Preference, said


@dataclass(frozen=True)
class Asked(Preference):
    """A truth, and what the judge said when the pair was shown in the other order."""

    other: Shown | None = None  # its overall verdict in this row's order; None where that answer could not be read


def judge_task(view: View, coherence: Coherence = deterministic, consistency_weight: float = 0.0) -> Task:
    """The task that GRPO trains a judge on.

    Args:
        view: gives prompt and form; an answer in another form cannot be read.
        coherence: of an answer, 0 to 1.
        consistency_weight: see the module.
    """

    def score(completion: str, truth: Preference, mode: Mode) -> Score:
        answer = view.read(completion)
        found = preference_task.score("" if isinstance(answer, Unreadable) else completion, truth, mode)
        parts = dict(found.parts)
        if not isinstance(answer, Unreadable):
            parts["coherence"] = (0.5 if mode == "fixed" else 1.0) * coherence(answer)
        if consistency_weight:
            other = truth.other if isinstance(truth, Asked) else None
            same = not isinstance(answer, Unreadable) and said(answer, "overall") == other
            parts["consistency"] = None if other is None else consistency_weight * same
        return Score(sum(value for value in parts.values() if value is not None), parts, found.parsed)

    def perfect(truth: Preference) -> str:
        return view.write(preference_task.answer_of(truth))

    def most(truth: Preference, mode: Mode) -> float:
        other = truth.other if isinstance(truth, Asked) else None
        at_odds = truth.overall in ("first", "second") and other != truth.overall  # being right is worth more
        return preference_task.most(truth, mode) + (0.0 if other is None or at_odds else consistency_weight)

    base = preference_task.TASK
    top = {mode: (low, high + consistency_weight) for mode, (low, high) in base.ranges.items()}
    return Task("preference", view.prompt, base.read_truth, score, top, perfect, metrics=base.metrics, most=most)
