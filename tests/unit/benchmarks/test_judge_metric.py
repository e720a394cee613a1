"""A judge as a metric: it is found by name, opened late, keyed by its weights, and says what it could not measure."""

import pytest
import torch

from benchmarks.metric import Pictures
from benchmarks.metrics import load_metrics
from portraitkit.errors import ConfigError, WeightsError


def test_a_judge_stands_beside_the_rewards(judge_folder, portrait):
    rewards, judge, anchored = load_metrics(("reward", f"judge:{judge_folder}", f"judge:{judge_folder}:versus_anchor"))
    assert judge.name.startswith("judge_") and anchored.name.endswith("_versus_anchor") and rewards.name == "reward"
    assert {path.suffix for path in judge.bundled} == {".safetensors", ".json"} and judge.reference == "source"
    faceless = torch.full_like(portrait, 0.5)
    batch = Pictures(torch.cat([portrait * 0.9, faceless]), source=torch.cat([portrait, faceless]), sources=("a", "b"))
    values = judge.open({})(batch)
    assert 0 <= float(values[0]) <= 1 and values[1].isnan()
    assert anchored.open({})(batch).isnan().all()  # no reference


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("judge:./nowhere", "--metrics judge ./nowhere: no such folder"),
        ("judge:embedded:win_rate", "needs pairs of methods"),
        ("judge:embedded:scoer", "did you mean 'score'"),
        ("judge:", "names no judge"),
    ],
)
def test_what_is_no_judge_is_refused(name, words):
    with pytest.raises((ConfigError, WeightsError), match=words):
        load_metrics((name,))
