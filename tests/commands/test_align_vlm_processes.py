"""align-vlm in two processes on the CPU, as torchrun starts it: with DeepSpeed's ZeRO-2 and ZeRO-3, resumed, and without DeepSpeed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from several_processes import several, torchrun
from written import lines

from policies.vlm.main import align_vlm

SMALL = (
    "--device cpu --dtype float32 "
    "--train-rows 8 --validation-rows 2 --held-out-rows 3 --probe-rows 2 --prompts-per-step 2 --group-size 2 --max-tokens 6 "
    "--samples 2 --max-train-steps 2 --warmup-steps 0 --checkpointing-steps 1 --validation-steps 1 --sft-steps 2 --sft-batch 1"
)
OPTIONS = SMALL.split()


@pytest.fixture
def two(model, tmp_path):
    """A function that runs align-vlm in two processes: (run folder, options) -> (exit code, stderr).

    The reward tells the answers of random weights apart; the task's own would not.
    """
    (tmp_path / "length.py").write_text("def compute_score(data_source, solution_str, ground_truth, extra_info): return len(solution_str)")
    words = ["--model", model, "--reward-file", "length.py:compute_score", *OPTIONS]

    def call(run, *options):
        script = "from policies.vlm.main import align_vlm; align_vlm()"
        done = torchrun(script, *words, "--output-dir", run, *options, folder=tmp_path, DS_ACCELERATOR="cpu")
        return done.returncode, done.stderr

    return call


@pytest.fixture(scope="module")
def imitate(model, tmp_path_factory):
    """A function that runs the sft stage: (name, processes, options) -> (run folder, losses of its updates), of four rows each."""
    runs = tmp_path_factory.mktemp("imitate")
    with several("several_aligners.py", DS_ACCELERATOR="cpu") as run:

        def start(name, processes, *more):
            options = ["--model", model, "--output-dir", runs / name, *OPTIONS, "--stages", "sft", "--sft-batch", 4 // processes, *more]
            codes = run({"processes": processes, "log": str(runs / f"{name}.log"), "options": [*map(str, options)]})
            said = "\n".join(path.read_text() for path in sorted(runs.glob(f"{name}.log.*")))
            assert codes == [0] * processes, said[-6000:]
            assert f"sft: 4 rows an update: {4 // processes} rows x {processes} device" in said
            return runs / name, [row["loss"] for row in lines(runs / name / "metrics.jsonl") if row["kind"] == "sft" and "loss" in row]

        yield start


@pytest.fixture(scope="module")
def imitated(imitate):
    """What one process makes of it."""
    return imitate("one", 1)


@pytest.mark.parametrize("options", [(), ("--deepspeed", "zero2")], ids=["replicas", "zero2"])
def test_two_processes_imitate_as_one(imitate, imitated, options):
    """The same rows in each update, half of them in each process: losses and model are those of one process."""
    run, losses = imitate("-".join(("two", *options[1:])), 2, *options)
    assert len(losses) == 2 and losses == pytest.approx(imitated[1], abs=2e-4)
    assert json.loads((run / "summary.json").read_text())["processes"] == 2
    learned = weights(run / "model")  # with DeepSpeed the head, which is tied to the embedding, stands there, too
    for name, value in weights(imitated[0] / "model").items():
        torch.testing.assert_close(learned[name], value, atol=1e-4, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def weights(folder):
    return load_file(folder / "model.safetensors")


def check_finished(run, model):
    """What one process leaves, two leave, too."""
    summary = json.loads((run / "summary.json").read_text())
    assert summary["processes"] == 2 and summary["held_out"]["n"] == 3 and len(lines(run / "answers.jsonl")) == 3
    for name in ("greedy", "sampled"):
        row = summary["held_out"][name]
        assert row["gain_ci95"][0] <= row["gain"] + 1e-6 and row["gain"] == pytest.approx(row["after"] - row["before"], abs=1e-5)
    assert [row["step"] for row in lines(run / "metrics.jsonl") if row["kind"] == "grpo" and "reward" in row] == [1, 2]  # one writes
    assert (run / "report.html").is_file() and (run / "model" / "README.md").is_file() and not (run / ".lock").exists()
    before, after = weights(model), weights(run / "model")
    assert before.keys() == after.keys() and all(before[name].shape == value.shape for name, value in after.items())
    same = {name: torch.equal(before[name].to(value.dtype), value) for name, value in after.items()}
    assert all(kept for name, kept in same.items() if "visual" in name) and not all(same.values())


@pytest.mark.slow
def test_zero3_trains_one_model_and_resumes(command, model, two, tmp_path):
    run = tmp_path / "run"
    options = ("--deepspeed", "zero3")
    code, err = two(run, *options)
    assert code == 0, err[-6000:]
    check_finished(run, model)
    whole, answers = weights(run / "model"), (run / "answers.jsonl").read_text()
    rewards = [row["reward"] for row in lines(run / "metrics.jsonl") if row["kind"] == "grpo" and "reward" in row]

    shutil.rmtree(run / "checkpoint-2")
    stored = (run / "environment.json").read_text()
    resume = ("--resume-from-checkpoint", "latest")
    code, _, err = command(align_vlm, "--model", model, "--output-dir", run, *OPTIONS, *resume, "--allow-changed")
    assert code == 2 and "checkpoint-1: was written by 2 processes, this run has 1" in err and "--nproc-per-node 2" in err
    assert (run / "environment.json").read_text() == stored
    code, err = two(run, *options, *resume)
    assert code == 0, err[-6000:]
    check_finished(run, model)
    for name, value in weights(run / "model").items():
        torch.testing.assert_close(value, whole[name], atol=1e-6, rtol=0)
    assert rewards == [row["reward"] for row in lines(run / "metrics.jsonl") if row["kind"] == "grpo" and "reward" in row]
    assert (run / "answers.jsonl").read_text() == answers


@pytest.mark.slow
def test_zero2_trains_a_lora(model, two, tmp_path):
    run = tmp_path / "run"
    code, err = two(run, "--deepspeed", "zero2", "--rank", "2", "--stages", "sft", "grpo")
    assert code == 0, err[-6000:]
    assert json.loads((run / "summary.json").read_text())["processes"] == 2
    assert {"sft", "grpo"} == {row["kind"] for row in lines(run / "metrics.jsonl")} and not (run / "sft" / "model").exists()
    learned = load_file(run / "model" / "adapter_model.safetensors")
    assert any(value.abs().sum() > 0 for name, value in learned.items() if "lora_B" in name)


@pytest.mark.slow
def test_without_deepspeed_validation_goes_on(model, two, tmp_path):
    run = tmp_path / "run"
    code, err = two(run)
    assert code == 0, err[-6000:]
    check_finished(run, model)
    assert [row["step"] for row in lines(run / "metrics.jsonl") if row["kind"] == "validation"] == [1, 2]
