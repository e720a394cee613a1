"""An evaluation counts each photo once and each person once, and says nothing where there are too few people."""

import math
from dataclasses import replace

import pytest
import torch

from policies.retoucher.evaluate import Evaluation, compare, evaluate_policy, evaluation_set
from policies.retoucher.micro_batch import MicroBatch
from policies.retoucher.photos import SyntheticSource
from policies.retoucher.processes import Processes
from policies.retoucher.report.results import Measure, headline


class ThreePhotos(SyntheticSource):
    """A source that ends."""

    def count(self, split):
        return 3


def measured(values: list[float], ids: list[str], people: list[str]) -> Evaluation:
    return Evaluation(torch.zeros(len(values), 3, 1, 1), {"reward": torch.tensor(values)}, ids, people)


def test_each_photo_is_taken_once_and_no_more_than_there_are(make_trainer, config):
    trainer = make_trainer(config)
    data = evaluation_set(trainer.backbone, ThreePhotos(128), "held_out", 48, prompt="", noise_seed=7)
    assert len(data.noise) == 3 and len(set(data.batch.ids)) == 3
    assert data.select(torch.tensor([2])).batch.people == [data.batch.people[2]]


def test_draws_of_a_photo_are_averaged_and_people_are_resampled():
    ids, people = ["a", "a", "a", "b", "c", "d", "e", "f", "g"], ["ann", "ann", "ann", "ann", "cy", "di", "ed", "flo", "gus"]
    before = measured([0.0] * 9, ids, people)
    after = measured([0.1, 0.2, 0.9, 0.0, 0.1, math.nan, 0.2, 0.3, 0.4], ids, people)
    assert after.means()["reward"] == pytest.approx((0.4 + 0.0 + 0.1 + 0.2 + 0.3 + 0.4) / 6)
    change = compare(before, after)["reward"]
    assert change.people == 5 and change.gain == pytest.approx(after.means()["reward"])
    assert all(math.isnan(end) for end in change.ci95)  # of five people; nothing is known of Di
    whole = compare(before, replace(after, values={"reward": after.values["reward"].nan_to_num(0.2)}))["reward"]
    assert whole.people == 6 and 0 < whole.ci95[0] < whole.gain < whole.ci95[1]


def test_who_evaluates_a_divided_network_does_it_as_often_as_the_others(make_trainer, config):
    """One photo and two processes: the second retouches it too, and its values are not counted."""
    trainer = make_trainer(config)
    data = evaluation_set(trainer.backbone, trainer.source, "validation", 1, prompt="", noise_seed=7)
    forwards, process = [], Processes(1, 2)
    process.together = lambda work: work()
    alone = evaluate_policy(trainer.backbone, data, trainer.rewards, 2)
    process.gather = lambda value: [alone, value]
    trainer.backbone.transformer.register_forward_hook(lambda *_: forwards.append(1))
    fitting = MicroBatch(4, fixed=True)
    together = evaluate_policy(trainer.backbone, data, trainer.rewards, 2, process, fitting=fitting)
    assert len(forwards) == 2 and torch.equal(together.values["reward"], alone.values["reward"])


def test_a_verdict_needs_people_and_a_change_that_matters():
    def verdict(name: str, gain: float, people: int) -> str:
        return Measure(name, name == "reward", math.nan, 0.5, 0.5 + gain, gain, gain - 0.001, gain + 0.001, people).verdict

    assert [verdict("reward", 0.1, people) for people in (1, 5, 6)] == ["too few people", "too few people", "better"]
    assert [verdict("texture_error", gain, 48) for gain in (0.004, 0.0005, -0.02)] == ["too small", "unclear", "better"]
    assert [verdict("blemish_residual", gain, 48) for gain in (-0.01, 0.03)] == ["too small", "worse"]
    one = headline(Measure("reward", True, math.nan, 0.5, 0.7, 0.2, math.nan, math.nan, 1))
    assert one.startswith("Too few people (1) for a verdict") and "interval" not in one
