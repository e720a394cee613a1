"""The judge as a reward: three forms against numbers worked out by hand, unreadable answers, groups."""

import math
from dataclasses import replace

import pytest
import torch

from portraitkit.endpoint import Reply
from portraitkit.errors import ConfigError
from preference_data.contract import Answer, write_answer
from preference_data.schema import DIMENSIONS
from reward_models.judge.judge import Judge
from reward_models.judge.reward import JudgeReward, split_argument
from reward_models.judge.settings import JudgeSettings


class ByLevel:
    """Judges by mean brightness: the brighter one wins; the score of each is 1 + 4 times its level, rounded. Level .3 cannot be read."""

    name = "by level"

    def __init__(self):
        self.asked = 0

    def ask(self, prompt, shown, max_tokens):
        self.asked += len(shown)
        return [Reply(self.say(*(round(float(one.mean()), 3) for one in pictures[1:]))) for pictures in shown]

    def say(self, first, second):
        if 0.3 in (first, second):
            return "no idea"
        scores = round(1 + 4 * first), round(1 + 4 * second)
        return write_answer(Answer(dict.fromkeys(DIMENSIONS, scores), "first" if first >= second else "second", ""))


@pytest.fixture
def reward(photos):
    """A function (form, levels of candidates, groups) -> (values, backend), beside a black photo with a grey (.5) anchor."""

    def make(form, levels, groups, *, anchored=True):
        backend = ByLevel()
        rows = photos.select(torch.zeros(max(groups) + 1, dtype=torch.long))
        clean = torch.full_like(rows.source, 0.5 if anchored else math.nan)
        rows = replace(rows, source=torch.zeros_like(rows.source), clean=clean)
        candidates = torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, *rows.source.shape[1:]).contiguous()
        judge = JudgeReward(Judge(backend, JudgeSettings()), form)
        return judge.of_groups(candidates, rows, torch.tensor(groups)).tolist(), backend, judge

    return make


def test_score_is_the_mean_of_the_five_scaled_to_one(reward):
    values, backend, _ = reward("score", [0.25, 1.0, 0.5], [0, 0, 1])
    assert values == pytest.approx([0.25, 1.0, 0.5]) and backend.asked == 6


def test_versus_anchor_is_the_probability_to_beat_it(reward):
    values, _, _ = reward("versus_anchor", [0.25, 1.0], [0, 0])
    sure = 1 / (1 + math.exp(-1))
    assert values == pytest.approx([1 - sure, sure])


def test_win_rate_agrees_with_hand_computed_games(reward):
    """Group 0: 1.0 beats .6 and .2; .6 beats .2. Group 1: two alike, whose orders disagree: a tie."""
    values, backend, _ = reward("win_rate", [0.6, 1.0, 0.2, 0.4, 0.4], [0, 0, 0, 1, 1])
    assert values == pytest.approx([0.5, 1.0, 0.0, 0.5, 0.5])
    assert backend.asked == 2 * (3 + 1)  # both orders of G (G - 1) / 2 games


def test_a_lone_candidate_plays_its_anchor_or_the_photo(reward):
    assert reward("win_rate", [0.4], [0])[0] == [0.0]
    assert reward("win_rate", [0.4], [0], anchored=False)[0] == [1.0]


def test_unreadable_answers_are_nan_and_counted(reward):
    values, _, judge = reward("score", [0.3, 1.0], [0, 0])
    assert math.isnan(values[0]) and values[1] == pytest.approx(1)
    assert judge.counts.unreadable == 2 and judge.counts.asked == 4
    values, _, _ = reward("win_rate", [0.6, 0.3, 0.2], [0, 0, 0])
    assert values[0] == 1 and math.isnan(values[1]) and values[2] == 0  # the one game that could be read


def test_without_an_anchor_there_is_no_value(reward):
    values, backend, _ = reward("versus_anchor", [1.0], [0], anchored=False)
    assert math.isnan(values[0]) and backend.asked == 0


def test_a_candidate_that_is_not_finite_is_not_judged(reward):
    values, backend, _ = reward("win_rate", [math.nan, 1.0, 0.2], [0, 0, 0])
    assert math.isnan(values[0]) and values[1:] == [1.0, 0.0] and backend.asked == 2


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("embedded", ("embedded", "score")),
        ("runs/model:win_rate", ("runs/model", "win_rate")),
        ("http://127.0.0.1:8000/v1", ("http://127.0.0.1:8000/v1", "score")),
        ("http://h:8000/v1:versus_anchor", ("http://h:8000/v1", "versus_anchor")),
        ("vllm:Qwen/Q", ("vllm:Qwen/Q", "score")),
        ("vllm:folder:score", ("vllm:folder", "score")),
    ],
)
def test_names(argument, parts):
    assert split_argument(argument) == parts


BAD = {"": "names no judge", ":score": "names no judge", "embedded:scoer": "did you mean 'score'"}


@pytest.mark.parametrize(("argument", "words"), BAD.items())
def test_bad_names_are_refused(argument, words):
    with pytest.raises(ConfigError, match=words):
        split_argument(argument)
