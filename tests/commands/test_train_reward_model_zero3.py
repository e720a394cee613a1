"""train-reward-model under DeepSpeed's ZeRO-3 in two processes on the CPU, as torchrun starts it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_vlm import THINK_ANSWER, write_tiny_vlm

from preference_data.contract import BRIEF_PROMPT, BRIEF_WORDS

ROOT = Path(__file__).parents[2]
SMALL = {
    "shown": "beside-difference",
    "form": "brief",
    "train-pairs": 4,
    "sft-pairs": 2,
    "validation-pairs": 1,
    "held-out-pairs": 2,
    "hack-cases": 0,
    "stability-pairs": 0,
    "prompts-per-step": 1,
    "group-size": 2,
    "max-tokens": 6,
    "max-train-steps": 1,
    "sft-steps": 2,
    "sft-batch": 1,
    "reject-pairs": 1,
    "reject-samples": 1,
}


@pytest.mark.slow
def test_two_processes_train_one_judge(tmp_path):
    model = write_tiny_vlm(tmp_path / "model", BRIEF_PROMPT, [*THINK_ANSWER, *BRIEF_WORDS.values()])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = tmp_path / "run"
    options = [text for name, value in SMALL.items() for text in (f"--{name}", str(value))]
    entry = "from reward_models.main import train_reward_model; train_reward_model()"
    (tmp_path / "start.py").write_text(entry)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(port),
        str(tmp_path / "start.py"),
    ]
    command += ["--model", str(model), "--output-dir", str(run), "--deepspeed", "zero3", "--no-blind", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=3000, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-6000:]
    summary = json.loads((run / "summary.json").read_text())
    assert {"base", "sft", "reject", "grpo"} <= summary["held_out"].keys() and summary["held_out"]["grpo"]["overall"]["n"] == 2
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "sft" and "loss" in row] == [1, 2]  # one process writes
    from safetensors.torch import load_file

    before, after = load_file(model / "model.safetensors"), load_file(run / "sft" / "model" / "model.safetensors")
    assert before.keys() == after.keys() and all(before[name].shape == value.shape for name, value in after.items())
    assert any(not torch.equal(before[name], value.to(before[name].dtype)) for name, value in after.items())
