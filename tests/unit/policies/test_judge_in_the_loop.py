"""A judge among the rewards of the loop: unreadable candidates, resume, the check by verifiable rewards, and its alarms."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from policies.retoucher.alarms import ERRORS, STEPS, WINDOW, Alarms
from policies.retoucher.backbones import tiny
from policies.retoucher.rank_groups import RANKED_GROUPS
from policies.retoucher.trainer import Progress, Trainer
from portraitkit.endpoint import Reply
from portraitkit.errors import TrainingStopped
from portraitkit.grpo import group_advantages
from portraitkit.runs.checkpoint import load_checkpoint, save_checkpoint
from portraitkit.stats import group_rank, rank_correlation
from preference_data.contract import Answer, write_answer
from preference_data.schema import DIMENSIONS
from reward_models.judge.judge import Judge
from reward_models.judge.reward import JudgeReward
from reward_models.judge.settings import JudgeSettings
from reward_models.reward_set import RewardSet, build_rewards
from tools.embedded import tiny_kontext


@pytest.fixture
def config(config):
    """Two sampling steps, of which one is drawn: what a judge says does not hang on them."""
    return replace(config, num_steps=2, segments=1)


class Brightness:
    """Prefers the brighter picture; every n-th answer is prose."""

    name = "brightness"

    def __init__(self, prose_every=0):
        self.prose_every, self.asked = prose_every, 0

    def ask(self, prompt, shown, max_tokens):
        return [self.say(float(first.mean()), float(second.mean())) for _, first, second in shown]

    def say(self, first, second):
        self.asked += 1
        if self.prose_every and self.asked % self.prose_every == 0:
            return Reply("Both are nice.")
        scores = min(1 + int(first * 40) % 5, 5), min(1 + int(second * 40) % 5, 5)
        return Reply(write_answer(Answer(dict.fromkeys(DIMENSIONS, scores), "first" if first >= second else "second", "")))


def with_judge(config, source, backend, form="score"):
    judge = JudgeReward(Judge(backend, JudgeSettings()), form)
    verifiable = build_rewards(("blemish_removal", "texture"), (), "product")
    rewards = RewardSet({**verifiable.functions, "judge:x": judge}, {**verifiable.weights, "judge:x": 0.2}, "product")
    return Trainer(config, tiny.wrap(tiny_kontext.build_pipeline(0)), source, rewards, Console(quiet=True))


def test_what_a_judge_cannot_score_is_out_of_its_group(photos_of_two):
    candidates, photos = photos_of_two
    backend = Brightness(prose_every=8)  # the last answer of four comparisons
    judge = JudgeReward(Judge(backend, JudgeSettings()), "score")
    texture = build_rewards(("texture",), (), "product").functions["texture"]
    rewards = RewardSet({"texture": texture, "judge:x": judge}, {"texture": 1.0, "judge:x": 0.2}, "product")
    groups = torch.tensor([0, 0, 0, 0])
    parts = rewards.parts(candidates, photos, groups)
    assert parts["texture"].isfinite().all() and parts["judge:x"].isnan().tolist() == [False, False, False, True]
    combined = rewards.combined(parts)
    assert combined.isnan().tolist() == [False, False, False, True]
    advantages = group_advantages(combined, groups)
    assert advantages.unscorable == 1 and advantages.values[3] == 0 and advantages.values.sum() == pytest.approx(0, abs=1e-5)


@pytest.fixture
def photos_of_two(source):
    photos = source.load("train", [0]).photos.select(torch.zeros(4, dtype=torch.long))
    noise = torch.rand(4, 1, 1, 1, generator=torch.Generator().manual_seed(0)) * 0.1
    return (photos.source + noise).clamp(0, 1), photos


@pytest.mark.parametrize(("form", "advantage"), [("score", "combined"), ("win_rate", "gdpo")])
def test_a_step_counts_what_the_judge_said(config, source, form, advantage):
    trainer = with_judge(replace(config, advantage=advantage), source, Brightness(), form)
    result = trainer.train_step()
    asked = 2 * 8 if form == "score" else 2 * 2 * 6  # 2 photos with 4 candidates
    assert trainer.progress.judge_asked == result.judged["judge_asked"] == asked
    assert result.judged["judge_unreadable"] == 0 and -1 <= result.judged["judge_agreement"] <= 1
    assert 0 <= result.judged["verifiable"] <= 1 and result.parts["judge:x"].isfinite().all()


def test_the_first_groups_say_how_the_judge_ranks(config, source):
    trainer = with_judge(config, source, Brightness())
    assert trainer.train_step().judged["judge_asked"] == 16  # what ranks are asked for is not counted as training
    ranks = trainer.progress.judge_ranks
    assert list(ranks) == ["overall", *DIMENSIONS] and len(ranks["overall"]) == len(ranks["clarity"]) == 2
    assert all(len(some) <= 2 and all(abs(rank) <= 1 for rank in some) for some in ranks.values())
    before = copy.deepcopy(ranks)
    trainer.progress.step = RANKED_GROUPS  # that is long past
    trainer.train_step()
    assert trainer.progress.judge_ranks == before
    assert Progress(**json.loads(json.dumps(trainer.state()))["progress"]).judge_ranks == ranks


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        ([0.9] * 8, None),
        ([0.4, 0.2] * 4, "too weakly"),
        ([0.4, -0.4] * 4, "at random"),
        ([-0.4] * 8, "the wrong way"),
        ([0.1], "at random"),
    ],
)
def test_a_judge_that_does_not_rank_the_rollouts_is_an_alarm(ranks, said):
    raised = Alarms().after_first_groups(2, group_rank(ranks))
    assert [alarm.name for alarm in raised] == ([] if said is None else ["judge's rank"])
    assert said is None or (said in raised[0].message and "not to be trusted as a reward" in raised[0].message)


def test_a_resumed_run_with_a_judge_equals_an_uninterrupted_one(config, source, tmp_path):
    whole = with_judge(config, source, Brightness())
    for _ in range(2):
        whole.train_step()
    first = with_judge(config, source, Brightness())
    first.train_step()
    first.alarms.after_step(1, spread=1.0, ratio_deviation=0, on_policy=True, clip_range=1.0, agreement=0.5)
    first.alarms.after_validation(1, {"verifiable": 0.4}, rollout_reward=None, ode_reward=None, judged=0.5)
    save_checkpoint(tmp_path, 1, first.tensors(), first.state(), limit=None)
    second = with_judge(config, source, Brightness())
    checkpoint = load_checkpoint(tmp_path, "latest")
    second.restore(checkpoint.tensors, checkpoint.state)
    assert second.alarms.courses == [(0.5, 0.4)] and second.alarms.agreements == [0.5]
    second.train_step()
    assert all(torch.equal(value, second.adapter[name]) for name, value in whole.adapter.items())
    assert second.progress.judge_asked == whole.progress.judge_asked == 32


def test_a_judge_that_cannot_be_read_stops_the_run(config, source):
    trainer = with_judge(config, source, Brightness(prose_every=1))
    with pytest.raises(TrainingStopped, match="8 of 8 candidates could not be scored"):
        trainer.train_step()
    assert trainer.progress.judge_unreadable == 16


def follow(pairs):
    alarms, raised = Alarms(), []
    base = {"reward": 0.5, "residual_grain": 1, **dict.fromkeys(ERRORS, 0)}
    for step, (judged, checked) in enumerate(pairs):
        raised += alarms.after_validation(step, base | {"verifiable": checked}, rollout_reward=None, ode_reward=None, judged=judged)
    return raised


def test_a_judge_that_rises_while_the_check_falls_is_an_alarm():
    (alarm,) = follow([(0.50 + 0.03 * i, 0.70 - 0.02 * i) for i in range(WINDOW + 3)])
    assert alarm.name == "judge hacked" and "rose by 0.120" in alarm.message and "fell by 0.080" in alarm.message


@pytest.mark.parametrize(
    "pairs",
    [
        [(0.5 + 0.03 * i, 0.6 + 0.02 * i) for i in range(8)],  # both rise
        [(0.5 - 0.03 * i, 0.6 - 0.02 * i) for i in range(8)],  # both fall
        [(0.5 + 0.001 * i, 0.6 - 0.001 * i) for i in range(8)],  # too little
        [(0.5 + 0.1 * (i % 2), 0.6 - 0.1 * (i % 2)) for i in range(8)],  # noise without a trend
        [(0.5 + 0.03 * i, 0.6 - 0.02 * i) for i in range(WINDOW - 1)],  # not long enough
        [(math.nan, 0.6)] * 8,
    ],
)
def test_nothing_else_is_one(pairs):
    assert follow(pairs) == []


def test_a_judge_that_ranks_against_the_check_inside_groups_is_an_alarm():
    alarms, raised = Alarms(), []
    for step in range(STEPS):
        raised += alarms.after_step(step, spread=1.0, ratio_deviation=0, on_policy=True, clip_range=1.0, agreement=-0.2)
    assert [alarm.name for alarm in raised] == ["judge disagrees"] and "-0.20" in raised[0].message
    for agreement in (math.nan, None):
        assert not Alarms().after_step(0, spread=1.0, ratio_deviation=0, on_policy=True, clip_range=1.0, agreement=agreement)


def test_rank_correlation():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, math.nan])
    assert rank_correlation(values, values.exp()) == pytest.approx(1)
    assert rank_correlation(values, -values) == pytest.approx(-1)
    assert rank_correlation(torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0, 4.0])) == pytest.approx(0.9486833)  # scipy's
    assert math.isnan(rank_correlation(values, torch.ones(5)))
