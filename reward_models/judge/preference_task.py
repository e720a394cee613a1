"""The judge's task: which of two retouches is better, overall and on five dimensions, with reasons.

`fixed` adds four parts, 0 where the answer cannot be read: .5 for the form; .5 for an overall choice that follows from the answer's own
scores; 1 for the right overall choice; 1 times the share of dimensions whose verdict is right. `paper` is the published sum without the
dimensions: preference accuracy, coherence and form, each 0 or 1 (BeautyGRPO's and UnifiedReward-Think's reward; their coherence is
an NLI model's, ours here is the deterministic check that the choice has not the lower average).

A large model is shown the three pictures as they are. A tiny one cannot compare pictures that it reads one after the other, so it is shown
two: each candidate above its difference from the photo, amplified around grey; and the embedded judge, instead of the candidate, what in it
is as large as a spot.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from portraitkit.errors import DataError
from portraitkit.pictures.images import luminance, resize
from portraitkit.vlm.task import Mode, Score, Task
from preference_data.contract import BRIEF_PROMPT, Answer, Unreadable, prompt, read_answer, read_brief, write_brief
from preference_data.schema import DIMENSIONS
from preference_data.verdict import EXCHANGED, Order, Place, Shown, Verdict, in_order, shown_as, winner
from reward_models.filters import blur

Picture = Float[Tensor, "3 h w"]
SIDE, CROP, GAIN = 128, 96, 2.5
SPOT, AROUND, CONTRAST = 1.2, 4.5, 8.0
COLUMN: dict[Shown, str] = {"first": "x", "second": "y", "tie": "tie"}  # How a row's columns name the places
PLACE_OF: dict[str, Shown] = {name: shown for shown, name in COLUMN.items()}
INVENTED: dict[Shown | None, tuple[int, int]] = {"first": (5, 3), "second": (3, 5), "tie": (4, 4), None: (4, 4)}
"""Scores for a verdict, where the true ones are not known."""
WIDE: dict[Shown, dict[Shown | None, tuple[int, int]]] = {
    "first": {"first": (5, 1), "second": (4, 5), "tie": (4, 4), None: (5, 1)},
    "second": {"first": (5, 4), "second": (1, 5), "tie": (4, 4), None: (1, 5)},
}
"""The same by the overall verdict, where the dimensions speak for the other side."""


def as_taken(photo: Picture, first: Picture, second: Picture) -> list[Tensor]:
    """Photo, Image1, Image2."""
    return [photo, first, second]


def candidate_view(photo: Picture, candidate: Picture) -> Float[Tensor, "3 192 96"]:
    """The candidate's middle above `GAIN` times its difference from the photo."""
    photo, candidate = _middle(photo), _middle(candidate)
    return torch.cat([candidate, ((candidate - photo) * GAIN + 0.5).clamp(0, 1)], 1)


def spots_view(photo: Picture, candidate: Picture) -> Float[Tensor, "3 192 96"]:
    """What is as large as a spot, above `GAIN` times the difference from the photo: a tiny model does not see small, faint marks.

    Red is what is darker than its surroundings in the candidate (spots that are left), green and blue what the retouch made lighter (spots
    that are gone) and darker there: luma at `SPOT` pixels minus luma at `AROUND` (Gaussians), times `CONTRAST`.
    """
    photo, candidate = _square(photo), _square(candidate)
    lumas = luminance(torch.stack([candidate, candidate - photo]))
    left, changed = ((blur(lumas, SPOT) - blur(lumas, AROUND)) * CONTRAST)[:, 0]
    spots = torch.stack([-left, changed, -changed]).clamp(0, 1)
    return torch.cat([_middle(spots), ((_middle(candidate) - _middle(photo)) * GAIN + 0.5).clamp(0, 1)], 1)


def _square(picture: Tensor) -> Tensor:
    return picture if picture.shape[-2:] == (SIDE, SIDE) else resize(picture, (SIDE, SIDE))


def _middle(picture: Tensor) -> Tensor:
    edge = (SIDE - CROP) // 2
    return _square(picture)[:, edge : edge + CROP, edge : edge + CROP]


def _each(view: Callable[[Picture, Picture], Tensor]) -> Callable[[Picture, Picture, Picture], list[Tensor]]:
    """Image1 and Image2, each as a view shows it."""
    return lambda photo, first, second: [view(photo, first), view(photo, second)]


SHOWN: dict[str, Callable[[Picture, Picture, Picture], list[Tensor]]] = {
    "as-taken": as_taken,
    "beside-difference": _each(candidate_view),
    "spots-and-difference": _each(spots_view),
}
"""Views by the name that a judge's configuration gives."""


@dataclass(frozen=True)
class Preference:
    """What is known about a pair as it is shown."""

    overall: Shown | None  # the place of the better one; None where it is not known
    verdicts: Mapping[str, Shown]  # dimension -> the same; dimensions that nobody judged are left out
    scores: Mapping[str, tuple[int, int]] | None = None  # dimension -> true scores of the first and of the second, where they are known

    def exchanged(self) -> "Preference":
        """The same with the two candidates in each other's place."""
        overall = None if self.overall is None else EXCHANGED[self.overall]
        scores = {name: in_order(both, "ba") for name, both in self.scores.items()} if self.scores else None
        return Preference(overall, {name: EXCHANGED[verdict] for name, verdict in self.verdicts.items()}, scores)


def read_either(text: str) -> Answer | Unreadable:
    """Read an answer in the short form or in the full one."""
    short = read_brief(text)
    return short if isinstance(short, Answer) else read_answer(text)


def read_truth(columns: Mapping[str, Any]) -> Preference:
    """`verdict`: {"overall": "x" | "y" | "tie", dimension: ...}, and optionally `scores`: {dimension: [of x, of y]}.
    DataError: a name or value is unknown, or nothing is judged."""
    verdict = columns.get("verdict")
    if not isinstance(verdict, Mapping) or not verdict:
        raise DataError(f'verdict {verdict!r}: must be an object such as {{"overall": "x", "texture": "tie"}}')
    for name, value in verdict.items():
        if name not in ("overall", *DIMENSIONS):
            raise DataError(f"verdict {name!r}: unknown; use overall, {', '.join(DIMENSIONS)}")
        if not isinstance(value, str) or value not in PLACE_OF:
            raise DataError(f"verdict of {name} {value!r}: must be x, y or tie")
    scores = columns.get("scores")
    if scores is not None:
        pairs = list(scores.values()) if isinstance(scores, Mapping) and set(scores) == set(DIMENSIONS) else [None]
        if any(
            not isinstance(pair, list | tuple) or [type(one) for one in pair] != [int, int] or {*pair} - {1, 2, 3, 4, 5} for pair in pairs
        ):
            raise DataError(f"scores {scores!r}: must give every dimension two whole numbers from 1 to 5")
        scores = {name: (int(scores[name][0]), int(scores[name][1])) for name in DIMENSIONS}
    known: dict[str, Any] = {name: PLACE_OF[value] for name, value in verdict.items()}
    return Preference(known.pop("overall", None), known, scores)


def score(completion: str, truth: Preference, mode: Mode) -> Score:
    """What a judge's answer earns, see the module."""
    answer = read_either(completion)
    if isinstance(answer, Unreadable):
        nothing: dict[str, float | None] = {"form": 0.0, "coherence": 0.0, "overall": _known(truth, 0.0)}
        nothing |= {"dimensions": 0.0 if truth.verdicts else None} if mode == "fixed" else {}
        return Score(0.0, nothing, None)
    weight = 0.5 if mode == "fixed" else 1.0
    right = truth.overall == "tie" or (answer.better == "first") == (truth.overall == "first")
    parts = {"form": weight, "coherence": weight * answer.coherent, "overall": _known(truth, float(right))}
    if mode == "fixed":
        said = verdicts_shown(answer)
        found = [said[name] == verdict for name, verdict in truth.verdicts.items()]
        parts["dimensions"] = sum(found) / len(found) if found else None
    parsed = {"scores": {name: list(both) for name, both in answer.scores.items()}, "better": COLUMN[answer.better]}
    return Score(sum(value for value in parts.values() if value is not None), parts, parsed)


def _known(truth: Preference, value: float) -> float | None:
    """An overall tie rewards neither choice."""
    return None if truth.overall in (None, "tie") else value


def verdicts_shown(answer: Answer) -> dict[str, Shown]:
    """Dimension -> the place of the higher score."""
    return {name: _higher(both) for name, both in answer.scores.items()}


def perfect(truth: Preference) -> str:
    """A right answer in the short form: the true scores, or 4 for a winner, 3 for a loser and 4 for both of a tie."""
    return write_brief(answer_of(truth))


def constants(truths: Sequence[Preference], mode: Mode) -> list[str]:
    """Short answers among which the best constant one is: for either choice, the most frequent verdict of each dimension.

    Where these contradict the choice, one of its neighbours is best: with one dimension won by the chosen candidate, or with none lost.
    """
    weighed: dict[str, dict[Shown, float]] = {name: {"first": 0.0, "second": 0.0, "tie": 0.0} for name in DIMENSIONS}
    for truth in truths:
        for name, verdict in truth.verdicts.items():
            weighed[name][verdict] += 1 / len(truth.verdicts)
    found: list[Preference] = []
    sides: tuple[Place, Place] = ("first", "second")
    for side in sides:
        best = {name: max(worth, key=worth.__getitem__) for name, worth in weighed.items()}
        unlost = {name: max((side, "tie"), key=worth.__getitem__) for name, worth in weighed.items()}
        found += [Preference(side, verdicts) for verdicts in (best, unlost, *({**best, name: side} for name in DIMENSIONS))]
    return [perfect(answer) for answer in found]


def answer_of(truth: Preference, reasoning: str = "") -> Answer:
    """The right answer, coherent wherever the truth allows it.

    It has the true scores where they agree with the verdicts. Scores that are not known are invented, wider apart where the overall
    winner wins fewer dimensions: then it is incoherent only if no dimension is the winner's or open, and one is the loser's.
    """
    verdicts = {name: truth.verdicts.get(name) for name in DIMENSIONS}
    if truth.scores:
        scores = {
            name: both if verdicts[name] in (None, _higher(both)) else INVENTED[verdicts[name]] for name, both in truth.scores.items()
        }
    else:
        scores = {name: INVENTED[verdict] for name, verdict in verdicts.items()}
        if truth.overall in ("first", "second") and not Answer(scores, truth.overall, "").coherent:
            scores = {name: WIDE[truth.overall][verdict] for name, verdict in verdicts.items()}
    first, second = (sum(both[side] for both in scores.values()) for side in (0, 1))
    return Answer(scores, truth.overall if truth.overall in ("first", "second") else "first" if first >= second else "second", reasoning)


def _higher(both: tuple[int, int]) -> Shown:
    return shown_as(winner(*both), "ab")


def most(truth: Preference, mode: Mode) -> float:
    """Form and coherence, and what is judged. A row all of whose dimensions speak against its overall verdict does not reach it."""
    applies = 1.0 if truth.overall in ("first", "second") else 0.0
    return 1.0 + applies + bool(truth.verdicts) if mode == "fixed" else 2.0 + applies


def metrics(completions: Sequence[str], truths: Sequence[Preference]) -> dict[str, float]:
    """Accuracy overall and on each dimension, and the share of answers that can be read; unreadable answers count as wrong."""
    answers = [read_either(text) for text in completions]
    found = {"readable": sum(isinstance(answer, Answer) for answer in answers) / len(answers)}
    for name in ("overall", *DIMENSIONS):
        right = []
        for answer, truth in zip(answers, truths, strict=True):
            known = truth.overall if name == "overall" else truth.verdicts.get(name)
            if known is None or (name == "overall" and known == "tie"):
                continue
            right.append(isinstance(answer, Answer) and said(answer, name) == known)
        if right:
            found[f"{name}_accuracy"] = sum(right) / len(right)
    return found


def said(answer: Answer, name: str) -> Shown:
    """The verdict of an answer, overall or on a dimension."""
    return answer.better if name == "overall" else verdicts_shown(answer)[name]


def make_row(split: str, seed: int) -> dict[str, Any]:
    """A synthetic pair, each candidate above its difference from the photo; of every second pair, b is shown first."""
    from preference_data.people.synthetic_pairs import make_pair

    pair = make_pair(split, seed)
    order: Order = "ab" if seed % 2 == 0 else "ba"
    truth = preference_of(pair["overall"], pair["verdicts"], pair["scores"], order)
    return {"images": SHOWN["beside-difference"](pair["input"], *in_order((pair["a"], pair["b"]), order)), **columns_of(truth)}


def preference_of(
    overall: Verdict | None, verdicts: Mapping[str, Verdict], scores: Mapping[str, tuple[int, int]] | None, order: Order
) -> Preference:
    """What is known about the files of a pair, as it is shown in an order."""
    return Preference(
        None if overall is None else shown_as(overall, order),
        {name: shown_as(verdict, order) for name, verdict in verdicts.items()},
        {name: in_order(both, order) for name, both in scores.items()} if scores else None,
    )


def columns_of(truth: Preference) -> dict[str, Any]:
    """The inverse of `read_truth`, of a truth with an overall verdict and scores."""
    assert truth.overall and truth.scores
    verdict = {"overall": COLUMN[truth.overall], **{name: COLUMN[value] for name, value in truth.verdicts.items()}}
    return {"verdict": verdict, "scores": {name: list(truth.scores[name]) for name in DIMENSIONS}}


TASK = Task(
    "preference",
    prompt(),
    read_truth,
    score,
    {"paper": (0.0, 3.0), "fixed": (0.0, 3.0)},
    perfect,
    make_row,
    brief=BRIEF_PROMPT,
    metrics=metrics,
    most=most,
    constants=constants,
    whole=lambda truth: truth.overall is not None and (truth.scores is not None or set(DIMENSIONS) <= set(truth.verdicts)),
)
