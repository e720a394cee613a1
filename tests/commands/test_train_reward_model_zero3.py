"""train-reward-model under DeepSpeed's ZeRO-3 in two processes on the CPU, as torchrun starts it."""

import json

import pytest
import torch
from several_processes import torchrun
from tiny_vlm import THINK_ANSWER, write_tiny_vlm

from preference_data.contract import BRIEF_PROMPT, BRIEF_WORDS

SMALL = (
    "--device cpu --dtype float32 "
    "--shown beside-difference --form brief --train-pairs 4 --sft-pairs 2 --validation-pairs 1 --held-out-pairs 2 --hack-cases 0 "
    "--stability-pairs 0 --prompts-per-step 1 --group-size 2 --max-tokens 6 --max-train-steps 1 --sft-steps 2 --sft-batch 1 "
    "--reject-pairs 1 --reject-samples 1"
)
OPTIONS = SMALL.split()


@pytest.mark.slow
def test_two_processes_train_one_judge(tmp_path):
    model = write_tiny_vlm(tmp_path / "model", BRIEF_PROMPT, [*THINK_ANSWER, *BRIEF_WORDS.values()])
    run = tmp_path / "run"
    script = "from reward_models.main import train_reward_model; train_reward_model()"
    words = ["--model", model, "--output-dir", run, "--deepspeed", "zero3", "--no-blind", *OPTIONS]
    done = torchrun(script, *words, folder=tmp_path, DS_ACCELERATOR="cpu")
    assert done.returncode == 0, done.stderr[-6000:]
    summary = json.loads((run / "summary.json").read_text())
    assert {"base", "sft", "reject", "grpo"} <= summary["held_out"].keys() and summary["held_out"]["grpo"]["overall"]["n"] == 2
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "sft" and "loss" in row] == [1, 2]  # one process writes
    from safetensors.torch import load_file

    before, after = load_file(model / "model.safetensors"), load_file(run / "sft" / "model" / "model.safetensors")
    assert before.keys() == after.keys() and all(before[name].shape == value.shape for name, value in after.items())
    assert any(not torch.equal(before[name], value.to(before[name].dtype)) for name, value in after.items())
