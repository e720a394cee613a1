"""A model's opinion of written emotion analyses, from 1 to 10, by any OpenAI-compatible endpoint.

An answer without one whole number from 1 to 10 in the form asked for, and a request that failed, give no score: they are counted and
named, and the mean is over the scored rows only. The figure depends on the judge: its name stands beside it.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from portraitkit.endpoint import Endpoint, Question, Reply

PROMPT = """You compare an analysis of a facial expression with a reference about the same face.

Reference: {reference}

Analysis: {analysis}

How well does the analysis agree with the reference: the facial movements it names, the emotion, and how one follows from the other? Give
a whole number from 1 (contradicts it) to 10 (says the same). Answer with that number alone, inside <score></score>."""
SCORE = re.compile(r"<score>\s*(10|[1-9])\s*</score>")
BATCH = 32


def read_score(reply: Reply) -> tuple[int | None, str]:
    """The score of a judge's reply, and why there is none."""
    if reply.text is None:
        return None, reply.error
    found = SCORE.findall(reply.text)
    if len(found) != 1:
        return None, f"no single score from 1 to 10 in {reply.text[:200]!r}"
    return int(found[0]), ""


def judge(
    endpoint: Endpoint, analyses: Sequence[str], references: Sequence[str], *, advance: Callable[[int], object] = lambda count: None
) -> dict[str, Any]:
    """Scores of some analyses.

    Args:
        endpoint: that judges.
        analyses: what was written; an empty one is judged like any other.
        references: one for each.
        advance: called with the number of rows done.

    Returns:
        `judge` (the model's name), `mean` over the scored rows (None if there are none), `scored`, `failed`, `scores` (None where there
        is none) and `failures` (place and reason).
    """
    scores: list[int | None] = []
    failures: list[dict[str, Any]] = []
    texts = [PROMPT.format(reference=reference, analysis=analysis) for analysis, reference in zip(analyses, references, strict=True)]
    for start in range(0, len(texts), BATCH):
        for reply in endpoint.ask([Question(text) for text in texts[start : start + BATCH]]):
            score, reason = read_score(reply)
            if score is None:
                failures.append({"row": len(scores) + 1, "reason": reason})
            scores.append(score)
        advance(len(texts[start : start + BATCH]))
    known = [score for score in scores if score is not None]
    return {
        "judge": endpoint.model,
        "mean": sum(known) / len(known) if known else None,
        "scored": len(known),
        "failed": len(failures),
        "scores": scores,
        "failures": failures,
    }
