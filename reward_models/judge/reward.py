"""A judge as a reward of `align-retoucher`, in three forms, of which none is published: `score`, `versus_anchor`, `win_rate`.

All are in [0, 1], higher is better, and NaN for a candidate whose comparisons could not be read: such a candidate is out of its group's
statistics, never scored 0, and counted (`Judge.counts`). Comparisons are asked photo by photo, so that the model reads a photo once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from portraitkit.errors import ConfigError, nearest
from preference_data.schema import DIMENSIONS
from preference_data.verdict import winner
from reward_models.judge.judge import Comparison, Counts, Judge, Judgement, load_judge
from reward_models.photos import Photos

Form = Literal["score", "score_beside_anchor", "versus_anchor", "win_rate"]
FORMS: dict[str, str] = {
    "score": "weighted mean of the five scores, judged beside the photo itself",
    "score_beside_anchor": "weighted mean of the five scores, judged beside the preferred retouch",
    "versus_anchor": "calibrated probability of being better than the preferred retouch",
    "win_rate": "share of its group that a candidate beats, a tie counting half",
}
NEED_ANCHORS = ("score_beside_anchor", "versus_anchor")
Pictures = Sequence[Float[Tensor, "3 h w"]]


@dataclass(frozen=True)
class Rivals:
    """Candidates of one photo, RGB in [0, 1], all of one size. One that is there twice, as the same object, is asked about once."""

    photo: Float[Tensor, "3 h w"]
    candidates: Pictures
    anchor: Float[Tensor, "3 h w"] | None = None  # the preferred one, where it is known


@dataclass(frozen=True)
class JudgeReward:
    """A judge as a reward.

    Hacked by: whatever the judge has not learned to see. Its reward rising while the verifiable rewards fall is an alarm of
    `align-retoucher` (`policies.retoucher.alarms`); `train-reward-model --evaluate` shows which hacks a judge falls for.
    """

    judge: Judge  # that is asked; it counts what it could not read
    # `score`: the weighted mean of the five scores (`Judgement.means`), (mean - 1) / 4. One comparison a candidate. `score_beside_anchor`:
    # the same, beside the anchor. `versus_anchor`: the calibrated probability to beat the anchor. `win_rate`: wins in a round robin of the
    # group, a tie .5: G (G - 1) / 2 comparisons for G candidates, each in both orders. A candidate that is alone in its group plays its
    # anchor, or the photo where there is none
    form: Form
    dimension: str = ""  # the one of `preference_data.schema.DIMENSIONS` that counts, where the judge is asked about more; all if empty

    @property
    def needs_anchors(self) -> bool:
        """Whether photos without a preferred retouch have no value."""
        return self.form in NEED_ANCHORS

    @property
    def counts(self) -> Counts:
        """What the judge was asked so far."""
        return self.judge.counts

    @torch.no_grad()
    def of_groups(self, candidates: Float[Tensor, "n 3 h w"], photos: Photos, photo_of: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The reward of every candidate."""
        values = torch.full((len(candidates),), torch.nan)
        pictures = list(candidates.detach().float().cpu())  # processors and endpoints take them from there
        good = [bool(picture.isfinite().all()) for picture in pictures]
        rows, rivals = [], []
        for index in dict.fromkeys(photo_of.tolist()):
            members = [row for row, other in enumerate(photo_of.tolist()) if other == index and good[row]]
            if not members:
                continue
            photo, clean = (some[index].float().cpu() for some in (photos.source, photos.clean))  # as the candidates
            rows += members
            rivals.append(Rivals(photo, [pictures[row] for row in members], None if bool(clean.isnan().any()) else clean))
        found = [value for group in self.of_rivals(rivals) for value in group]
        values[rows] = torch.tensor(found)
        return values.to(candidates.device)

    @torch.no_grad()
    def dimensions(
        self, candidates: Float[Tensor, "n 3 h w"], photos: Photos, photo_of: Int[Tensor, " n"]
    ) -> dict[str, Float[Tensor, " n"]]:
        """Expected score of every candidate on each dimension, 1 to 5, judged beside the photo itself; NaN where it cannot be read."""
        sources = list(photos.source.float().cpu())  # one object a photo: the model reads it once
        pairs = zip(candidates.detach().float().cpu(), photo_of.tolist(), strict=True)  # processors and endpoints take them from there
        judged = self.judge.judge([Comparison(sources[photo], picture.nan_to_num(), sources[photo]) for picture, photo in pairs])
        rows = [one.scores if isinstance(one, Judgement) else None for one in judged]
        return {name: torch.tensor([math.nan if row is None else row[name][0] for row in rows]) for name in DIMENSIONS}

    def of_rivals(self, groups: Sequence[Rivals]) -> list[list[float]]:
        """The reward of every candidate of every group, NaN where none of its comparisons could be read."""
        asked: dict[tuple[int, int, int], Comparison] = {}
        plan: list[tuple[tuple[int, int, int], tuple[int, int], tuple[int, int] | None]] = []
        points: dict[tuple[int, int], list[float]] = {}
        for number, rivals in enumerate(groups):
            for first, second, row, other in self._games(rivals):
                one, two = (number, row), None if other is None else (number, other)
                if first is second and two is not None:
                    points.setdefault(one, []).append(0.5)
                    points.setdefault(two, []).append(0.5)
                    continue
                key = (number, id(first), id(second))
                if two is not None and (number, key[2], key[1]) in asked:
                    key, one, two = (number, key[2], key[1]), two, one
                asked.setdefault(key, Comparison(rivals.photo, first, second))
                plan.append((key, one, two))
        judged = dict(zip(asked, self.judge.judge(list(asked.values())), strict=True))
        for key, one, two in plan:
            if isinstance(judgement := judged[key], Judgement):
                for place, value in self._points(judgement, one, two):
                    points.setdefault(place, []).append(value)
        found = [[points.get((number, row)) for row in range(len(rivals.candidates))] for number, rivals in enumerate(groups)]
        return [[sum(some) / len(some) if some else math.nan for some in group] for group in found]

    def _games(self, rivals: Rivals) -> list[tuple[Tensor, Tensor, int, int | None]]:
        """Comparisons of a group: a and b, and their rows; the row of b is None where it is no candidate."""
        some = rivals.candidates
        if self.form == "win_rate" and len(some) > 1:
            return [(first, some[other], row, other) for row, first in enumerate(some) for other in range(row + 1, len(some))]
        if self.needs_anchors and rivals.anchor is None:
            return []
        beside = rivals.photo if rivals.anchor is None or self.form == "score" else rivals.anchor
        return [(candidate, beside, row, None) for row, candidate in enumerate(some)]

    def _points(self, judgement: Judgement, row: tuple[int, int], other: tuple[int, int] | None) -> list[tuple[tuple[int, int], float]]:
        scores = judgement.scores[self.dimension] if self.dimension else judgement.means
        if self.form == "versus_anchor":
            return [(row, judgement.probability)]
        if self.form == "win_rate":
            verdict = winner(*scores) if self.dimension else judgement.overall
            won = {"a": 1.0, "b": 0.0, "tie": 0.5}[verdict]
            return [(row, won)] if other is None else [(row, won), (other, 1 - won)]
        return [(row, (scores[0] - 1) / 4)]


def judge_reward(argument: str, *, device: str = "cpu", load: Callable[..., Judge] = load_judge) -> JudgeReward:
    """The reward that `judge:PATH[:FORM]` names; `argument` is what follows `judge:`, PATH what `load_judge` takes, FORM one of `FORMS`,
    `score` if not given.
    ConfigError: the form is unknown, or no judge is named.
    WeightsError: the judge cannot be loaded."""
    path, form = split_argument(argument)
    return JudgeReward(load(path, device=device), form)


def split_argument(argument: str, default: Form = "score") -> tuple[str, Form]:
    """PATH and FORM of `PATH[:FORM]`, the default if not given; colons of URLs and of `vllm:` belong to the path.
    ConfigError: no path, or an unknown form."""
    path, colon, last = argument.rpartition(":")
    if not colon or last.isdecimal() or "/" in last or path == "vllm":
        path, last = argument, default
    if last not in FORMS:
        raise ConfigError(f"reward judge:{argument}: form {last!r} is unknown{nearest(last, list(FORMS))}; known: {', '.join(FORMS)}")
    if not path:
        raise ConfigError("reward judge: names no judge; give judge:embedded, judge:FOLDER or judge:http://127.0.0.1:8000/v1")
    return path, last  # pyright: ignore[reportReturnType]
