"""How a judge ranks the rollouts of one policy: asked about groups whose truth is known."""

import json
import math

import pytest
import torch

from portraitkit.endpoint import Reply
from preference_data.contract import Answer, write_answer
from preference_data.generators import Candidate
from preference_data.schema import DIMENSIONS, Origin
from reward_models.evaluation.as_reward import FILE, ask_group, rollout_figures
from reward_models.judge.judge import Judge
from reward_models.judge.settings import JudgeSettings

LEVELS = (0.1, 0.5, 0.3, 0.6, 0.2, 0.21)
"""Brightness of the candidates, which is their truth."""


class Eyes:
    """Scores brightness, or the lack of it; every picture of `blind` brightness is answered with prose."""

    name = "eyes"

    def __init__(self, sign=1.0, blind=None):
        self.sign, self.blind = sign, blind

    def ask(self, prompt, shown, max_tokens):
        return [self.say(float(first.mean()), float(second.mean())) for _, first, second in shown]

    def say(self, first, second):
        if self.blind is not None and min(abs(first - self.blind), abs(second - self.blind)) < 0.005:
            return Reply("Both are nice.")
        scores = tuple(round(3 + self.sign * 2.8 * (value - 0.4) / 0.4) for value in (first, second))
        scores = tuple(min(max(score, 1), 5) for score in scores)
        better = "first" if self.sign * (first - second) >= 0 else "second"
        return Reply(write_answer(Answer(dict.fromkeys(DIMENSIONS, scores), better, "")))


def group():
    return [
        Candidate(torch.full((3, 8, 8), level), Origin("rollout", model="tiny"), truth=dict.fromkeys(("overall", *DIMENSIONS), level))
        for level in LEVELS
    ]


def asked(judge):
    return ask_group(Judge(judge, JudgeSettings()), torch.full((3, 8, 8), 0.4), group())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_judge_that_sees_the_truth_ranks_it(sign, tmp_path):
    row = asked(Eyes(sign))
    assert all(rank[0] * sign > 0.85 for rank in row["ranks"].values())
    assert [round(couple[0], 2) for couple in row["couples"]] == [-0.4, -0.3, -0.01]
    assert [couple[1] for couple in row["couples"]] == ["b" if sign > 0 else "a"] * 3
    (tmp_path / FILE).write_text("".join(json.dumps({"identity": str(place), **row}) + "\n" for place in range(6)))
    figures = rollout_figures(tmp_path)
    overall = figures["rank"]["overall"]
    assert overall["groups"] == figures["people"] == 6 and sign * overall["rank"] > 0.85 and not math.isnan(overall["ci95"][0])
    assert figures["apart"]["right"] == figures["apart"]["right_by_scores"] == (1.0 if sign > 0 else 0.0)
    assert figures["alike"] == {"decided": 1.0, "flips": 0.0, "flips_ci95": [0.0, pytest.approx(0.39, abs=0.01)], "n": 6}


def test_what_cannot_be_read_is_no_rank_and_not_right(tmp_path):
    row = asked(Eyes(blind=0.6))
    assert row["ranks"]["clarity"][0] > 0.85 and row["couples"][1][1:] == (None, False, None)
    nothing = asked(Eyes(blind=0.4))  # the photo itself
    assert nothing["ranks"]["overall"] == []
    assert rollout_figures(tmp_path) == {}
