"""`train-reward-model --evaluate` in several processes: the answers, and all figures, are those of one process."""

import json
from functools import partial

import pytest
from tiny_vlm import THINK_ANSWER, write_tiny_vlm

from portraitkit.runs.shards import Shard
from preference_data.contract import BRIEF_PROMPT, BRIEF_WORDS
from reward_models.evaluation import evaluate
from reward_models.evaluation.battery import Asking
from reward_models.main import train_reward_model

SMALL = (
    "--evaluate --device cpu --dtype float32 "
    "--shown beside-difference --form brief --validation-pairs 2 --held-out-pairs 3 --hack-cases 1 --stability-pairs 2 "
    "--generation-batch 2 --max-tokens 4"
)
OPTIONS = SMALL.split()


@pytest.fixture
def model(tmp_path):
    return write_tiny_vlm(tmp_path / "model", BRIEF_PROMPT, [*THINK_ANSWER, *BRIEF_WORDS.values()])


def test_two_processes_find_what_one_finds(command, model, tmp_path, monkeypatch):
    """As under torchrun, one after the other; the second process's first try is killed after three batches."""
    run = partial(command, train_reward_model, *OPTIONS, "--model", model, "--output-dir")
    assert run(tmp_path / "one")[0] == 0
    asked = []

    def counted(asking, model, pairs, advance):
        asked.append([pair.id for pair in pairs])
        if len(asked) == 4:
            raise ZeroDivisionError
        return ask(asking, model, pairs, advance)

    ask = Asking.ask
    monkeypatch.setattr(Asking, "ask", counted)
    monkeypatch.setattr(evaluate, "current_shard", lambda option: Shard(1, 2, True))
    with pytest.raises(ZeroDivisionError):
        evaluate.run_evaluation(_config(model, tmp_path / "two"), ["test"])
    code, _, err = run(tmp_path / "two", "--seed", "5")
    assert code == 2 and "seed" in err and err.count("\n") == 1
    assert run(tmp_path / "two")[0] == 0
    assert not (tmp_path / "two" / "base").exists()
    monkeypatch.setattr(evaluate, "current_shard", lambda option: Shard(0, 2, True))
    assert run(tmp_path / "two")[0] == 0
    answers = {path.relative_to(tmp_path / "one"): path.read_bytes() for path in (tmp_path / "one").glob("*/*.jsonl")}
    assert len(answers) > 8
    assert answers == {path.relative_to(tmp_path / "two"): path.read_bytes() for path in (tmp_path / "two").glob("*/*.jsonl")}
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")]
    assert all(summary.pop("seconds") for summary in summaries) and summaries[0] == summaries[1]
    pairs = sum(content.count(b"\n") for content in answers.values())
    assert sum(map(len, asked)) == pairs + 1, "each pair once, and the one at which the process was killed"
    assert not (tmp_path / "two" / "shards").exists()
    code, _, err = run(tmp_path / "two")
    assert code == 2 and "holds a finished run" in err


def _config(model, folder):
    from portraitkit.config import load_config
    from reward_models.training.config import RewardModelConfig

    return load_config(RewardModelConfig, [*OPTIONS, "--model", str(model), "--output-dir", str(folder)], prog="train-reward-model")
