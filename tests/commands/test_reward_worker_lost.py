"""A run that loses its reward workers at any moment: saved, told on one line, and resumed to what it would have been."""

import json
import signal
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from policies.retoucher.main import align_retoucher
from portraitkit.errors import WorkersLost
from reward_models.reward_set import build_rewards

OPTIONS = ["--photos-per-step", 2, "--group-size", 2, "--micro-batch", 2, "--max-train-steps", 2, "--validation-steps", 1]
OPTIONS += ["--validation-photos", 1, "--held-out-photos", 2, "--num-steps", 2, "--segments", 1, "--warmup-steps", 0, "--ema-decay", 0.5]
OPTIONS += ["--rewards", "texture", "clarity", "--checkpointing-steps", 0]
pytestmark = pytest.mark.usefixtures("one_thread")
TIMES = ("seconds", "time")


class Elsewhere:
    """Scores `texture` in this process, but for a time at which nobody answers, and a signal comes if one is given."""

    def __init__(self, lost_at, number=None):
        self.local, self.asked, self.lost_at, self.number = build_rewards(("texture", "clarity"), (), "product"), 0, lost_at, number

    def submit(self, names, *unit):
        future = Future()
        if self.asked == self.lost_at:
            if self.number is not None:
                signal.raise_signal(self.number)
            future.set_exception(WorkersLost("no reward worker scored anything for 9 s (http://a: killed)"))
        else:
            future.set_result(self.local.score_unit(list(names), *unit))
        self.asked += 1
        return [future]


@pytest.fixture
def lose(monkeypatch):
    """Sets the request at which the workers are lost, -1 for never; returns what counts them."""

    def set_up(lost_at, number=None):
        elsewhere = Elsewhere(lost_at, number)

        @contextmanager
        def opened(config, console):
            yield replace(elsewhere.local, elsewhere=elsewhere, served=("texture",))

        monkeypatch.setattr("policies.retoucher.run.open_rewards", opened)
        return elsewhere

    return set_up


def lines(run):
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in read]


def test_lost_at_any_moment_and_resumed(command, tmp_path, lose):
    lose(-1)
    code, _, err = command(align_retoucher, *OPTIONS, "--output-dir", tmp_path / "whole")
    assert code == 0, err
    run, more = tmp_path / "lost", ()
    # The second group of the first step; resumed, the ODE of the validation after step 1; resumed again, the held-out photos.
    for lost_at, step in ((2, 0), (3, 1), (7, 2)):
        lose(lost_at)
        code, _, err = command(align_retoucher, *OPTIONS, "--output-dir", run, *more)
        last = err.strip().splitlines()[-1]
        assert code == 2 and last.startswith("error: no reward worker scored anything for 9 s (http://a: killed); "), err
        assert f"step {step} is saved" in last and last.endswith("--resume-from-checkpoint latest") and not (run / "summary.json").exists()
        assert not (run / ".lock").exists() and f"checkpoint-{step}" in {path.name for path in run.glob("checkpoint-*")}
        more = ("--resume-from-checkpoint", "latest")
    assert (run / "pytorch_lora_weights.safetensors").is_file()
    lose(-1)
    code, _, err = command(align_retoucher, *OPTIONS, "--output-dir", run, *more)
    assert code == 0, err
    expected, found = (load_file(folder / "pytorch_lora_weights.safetensors") for folder in (tmp_path / "whole", run))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert lines(run) == lines(tmp_path / "whole")
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, tmp_path / "whole")]
    assert summaries[0]["held_out"] == summaries[1]["held_out"] and summaries[0]["alarms"] == summaries[1]["alarms"]


def test_an_interrupt_while_no_worker_answers(command, tmp_path, lose):
    lose(5, signal.SIGINT)  # in the second step
    code, _, err = command(align_retoucher, *OPTIONS, "--output-dir", tmp_path / "run")
    assert code == 130 and "stopped at step 1; go on with --resume-from-checkpoint latest" in err and "error:" not in err
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]
