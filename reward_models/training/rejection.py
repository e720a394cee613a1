"""Which sampled trajectories are worth imitating: right overall, no dimension the wrong way round, coherent."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from portraitkit.vlm.generate import Completion
from portraitkit.vlm.rows import Row
from preference_data.contract import Unreadable
from preference_data.verdict import EXCHANGED
from reward_models.judge.coherence import Coherence
from reward_models.judge.pairs import View
from reward_models.judge.preference_task import Preference, said, verdicts_shown

ENOUGH = 0.5  # Of an NLI model's probability


@dataclass
class Kept:
    """What was kept of the trajectories sampled."""

    rows: list[Row] = field(default_factory=list)  # with the trajectory as target
    sampled: int = 0  # trajectories in all
    # reason -> trajectories; "kept" among them, before equal ones of a row are counted once
    why: Counter[str] = field(default_factory=Counter)
    answered: int = 0  # rows of which at least one was kept
    asked: int = 0  # rows in all

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        share = {reason: count / max(self.sampled, 1) for reason, count in sorted(self.why.items())}
        return {
            "sampled": self.sampled,
            "shares": share,
            "keep_rate": share.get("kept", 0.0),
            "rows_with_one": self.answered / max(self.asked, 1),
            "imitated": len(self.rows),
        }


def verdict_on(text: str, truth: Preference, view: View, coherence: Coherence, least: float) -> tuple[str, float]:
    """(why a trajectory is kept or not, the share of its dimensions that are right).

    The rule: it can be read; its overall choice is right; no dimension's winner is named as the loser; at least the share `least` of the
    known dimensions is right, ties included; its reasoning is coherent with its answer, by .5 or more. Why is "kept", or the first that
    fails. The truth is in the order in which the pair was shown; a pair without an overall winner teaches nothing here.
    """
    answer = view.read(text)
    if isinstance(answer, Unreadable):
        return "unreadable", 0.0
    verdicts = verdicts_shown(answer)
    hits = [verdicts[name] == verdict for name, verdict in truth.verdicts.items()]
    share = sum(hits) / len(hits) if hits else 1.0
    if said(answer, "overall") != truth.overall:
        return "overall wrong", share
    if any(verdict != "tie" and verdicts[name] == EXCHANGED[verdict] for name, verdict in truth.verdicts.items()):
        return "a dimension reversed", share
    if share < least - 1e-9:
        return "too few dimensions", share
    if coherence(answer) < ENOUGH:
        return "incoherent", share
    return "kept", share


def keep(
    rows: Sequence[Row], trajectories: Sequence[Sequence[Completion]], view: View, coherence: Coherence, *, least: float, most: int
) -> Kept:
    """Sort the trajectories of each row by `verdict_on`, and keep at most `most` different ones of a row, those with the most right
    dimensions first.
    """
    kept = Kept(asked=len(rows))
    for row, some in zip(rows, trajectories, strict=True):
        good: dict[str, float] = {}
        for one in some:
            why, share = verdict_on(one.text, row.truth, view, coherence, least)
            kept.why[why] += 1
            if why == "kept":
                good.setdefault(one.text, share)
        kept.sampled += len(some)
        kept.answered += bool(good)
        best = sorted(good, key=lambda text: -good[text])[:most]
        kept.rows += [Row(row.pictures, row.truth, text, row.columns) for text in best]
    return kept
