"""train-reward-model as a user runs it, on a tiny model with random weights in a folder."""

import json
import os
import shutil
import signal
import threading
import time

import pytest
import torch
from tiny_vlm import THINK_ANSWER, write_tiny_vlm
from written import lines

from portraitkit.config import load_config, recipe_names
from portraitkit.pictures.images import write_image
from preference_data.contract import BRIEF_PROMPT, BRIEF_WORDS, Answer, prompt, write_brief
from preference_data.pair_set import write_pairs
from preference_data.schema import DIMENSIONS, Pair
from reward_models.evaluation.as_reward import CLEAN, DRAWN, WRITTEN
from reward_models.main import train_reward_model
from reward_models.training.config import RewardModelConfig

SMALL = (
    "--device cpu --dtype float32 "
    "--shown beside-difference --form brief --train-pairs 4 --sft-pairs 2 --reject-pairs 2 --reject-samples 2 --reject-steps 2 "
    "--validation-pairs 2 --held-out-pairs 3 --hack-cases 1 --stability-pairs 2 --prompts-per-step 2 --group-size 2 --max-tokens 6 "
    "--max-train-steps 2 --validation-steps 1 --sft-steps 2 --sft-batch 2"
)
OPTIONS = SMALL.split()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tiny random Qwen2.5-VL that has the words of the brief form as tokens."""
    text = " ".join([BRIEF_PROMPT, prompt(), write_brief(Answer(dict.fromkeys(DIMENSIONS, (5, 3)), "first", ""))])
    return write_tiny_vlm(tmp_path_factory.mktemp("model"), text, [*THINK_ANSWER, *BRIEF_WORDS.values()])


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """A finished run of all three stages; copy it before changing it."""
    import sys

    run = tmp_path_factory.mktemp("runs") / "run"
    before, sys.argv = sys.argv, ["train-reward-model", "--model", str(model), "--output-dir", str(run), *OPTIONS, "--hack-cases", "2"]
    try:
        with pytest.raises(SystemExit) as stopped:
            train_reward_model()
    finally:
        sys.argv = before
    assert not stopped.value.code
    return run


def test_a_run_writes_all_that_it_promises(finished):
    summary = json.loads((finished / "summary.json").read_text())
    held_out = summary["held_out"]
    names = {"overall", *DIMENSIONS}
    for stage in ("base", "sft", "reject", "grpo"):
        assert set(held_out[stage]) == names
        row = held_out[stage]["overall"]
        assert {"acc_forward", "acc_reversed", "acc_average", "acc_consistent", "ci95", "flip_rate", "p_first"} <= set(row)
        assert row["acc_consistent"] <= row["acc_average"] and row["n"] == 3
    for baseline in ("blind", "shuffled_images", "majority"):
        assert set(held_out[baseline]) == names and all(0 <= value <= 1 for value in held_out[baseline].values())
    assert held_out["majority"]["overall"] == 0.5
    low, high = held_out["grpo_gain"]["ci95"]
    assert low <= held_out["grpo_gain"]["overall"] <= high
    assert summary["unreadable"] == dict.fromkeys(("base", "sft", "reject", "grpo", "blind"), 1.0)  # six tokens hold no answer
    assert set(summary["hacks"]) == {"over_smoothed", "sharpened", "gridded", "identity_shifted", "untouched"}
    assert set(summary["cues"]) == {*WRITTEN, *DRAWN} and set(summary["clean_faces"]) == set(CLEAN)
    ranks = summary["rollouts"]["rank"]
    assert summary["rollouts"]["people"] == 1 and set(ranks) == names and -1 <= ranks["overall"]["rank"] <= 1
    assert set(summary["stability"]) == {"jpeg_75", "resize_3_4"} and summary["seconds"] > 0 and summary["seed"] == 0
    assert summary["pairs"] == {"train": 4, "validation": 2, "held_out": 3}
    assert {"sft", "grpo", "validation", "blind"} <= {row["kind"] for row in lines(finished / "metrics.jsonl")}
    page = (finished / "report.html").read_text()
    assert "Right in both orders" in page and "http" not in page.replace("http-equiv", "")
    asked = json.loads((finished / "model" / "judge.json").read_text())
    assert (asked["shown"], asked["form"]) == ("beside-difference", "brief")
    card = (finished / "model" / "README.md").read_text()
    assert "**Synthetic**" in card and "| overall |" in card and "Honest retouch against tricks" in card and str(finished) not in card
    assert not list(finished.glob("*/checkpoint-*")) and not (finished / ".lock").exists()


def test_nobody_is_in_two_splits(finished):
    splits = json.loads((finished / "identities.json").read_text())
    everybody = [name for some in splits.values() for name in some]
    assert len(everybody) == len(set(everybody)) and min(map(len, splits.values())) >= 2


def test_what_was_trained_can_be_evaluated_and_knows_how_it_is_asked(command, finished, tmp_path):
    options = [*OPTIONS[8:], "--hack-cases", "2", "--evaluate", "--model", finished / "model", "--output-dir", tmp_path / "again"]
    code, _, err = command(train_reward_model, *options)
    assert code == 0, err
    summary = json.loads((tmp_path / "again" / "summary.json").read_text())
    before = json.loads((finished / "summary.json").read_text())
    assert summary["held_out"]["base"] == before["held_out"]["grpo"] and "blind" not in summary["held_out"]
    assert (
        summary["hacks"] == before["hacks"] and summary["rollouts"] == before["rollouts"] and (tmp_path / "again" / "report.html").is_file()
    )


def test_a_later_stage_is_done_again_from_the_one_before(command, model, finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run, symlinks=True)
    sft = (run / "sft" / "stage.json").stat().st_mtime_ns
    base = ["--model", model, "--output-dir", run, *OPTIONS]
    code, _, err = command(train_reward_model, *base, "--stages", "grpo", "--learning-rate", "1e-3")
    assert code == 0, err
    assert (run / "sft" / "stage.json").stat().st_mtime_ns == sft
    assert json.loads((run / "grpo" / "stage.json").read_text())["from"] == "reject"
    code, _, err = command(train_reward_model, *base, "--stages", "reject", "--seed", "1")
    assert code == 2 and "seed 0 -> 1" in err
    code, _, err = command(train_reward_model, *base, "--stages", "reject")
    assert code == 0, err
    assert not (run / "grpo").exists() and "grpo" not in json.loads((run / "summary.json").read_text())["held_out"]


def test_any_stage_alone_starts_from_the_model(command, model, tmp_path):
    run = tmp_path / "run"
    options = ["--stages", "grpo", "--no-blind", "--consistency-weight", "0.2", "--hack-cases", "0", "--stability-pairs", "0"]
    code, _, err = command(train_reward_model, "--model", model, "--output-dir", run, *OPTIONS, *options)
    assert code == 0, err
    assert json.loads((run / "grpo" / "stage.json").read_text())["from"] == "base"
    assert [row["step"] for row in lines(run / "metrics.jsonl") if row["kind"] == "grpo" and "reward" in row] == [1, 2]


def test_what_is_kept_is_imitated(command, model, tmp_path, monkeypatch):
    """A random model is never right: its trajectories are replaced by a right and a wrong one."""
    from portraitkit.vlm.generate import Completion, Decoding

    def complete(decoding, model, rows, *, greedy=False, advance):
        if greedy:
            return ask(decoding, model, rows, greedy=True, advance=advance)
        assert decoding.samples == 2 and decoding.temperature == 1.0
        return [[Completion(row.target, 20, False), Completion("no idea", 3, False)] for row in rows]

    ask = Decoding.complete
    monkeypatch.setattr(Decoding, "complete", complete)
    run = tmp_path / "run"
    options = ["--stages", "reject", "--no-blind", "--hack-cases", "0", "--stability-pairs", "0"]
    code, _, err = command(train_reward_model, "--model", model, "--output-dir", run, *OPTIONS, *options)
    assert code == 0, err
    note = json.loads((run / "reject" / "stage.json").read_text())
    assert note["from"] == "base" and note["keep_rate"] == 0.5 and note["shares"] == {"kept": 0.5, "unreadable": 0.5}
    assert note["imitated"] == note["sampled"] // 2 == 4 and "50% of 8 trajectories kept" in err
    assert not torch.equal(weights(run / "reject"), weights_of(model))


def test_an_interrupted_run_goes_on_and_ends_as_the_uninterrupted_one(command, model, finished, tmp_path):
    run = tmp_path / "run"
    options = ["--model", model, "--output-dir", run, *OPTIONS]

    def interrupt() -> None:
        while not (run / "metrics.jsonl").is_file() or "sft" not in (run / "metrics.jsonl").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code, _, err = command(train_reward_model, *options)
    thread.join()
    assert code == 143 and "--resume-from-checkpoint latest" in err, err
    assert not (run / "summary.json").exists()
    code, _, err = command(train_reward_model, *options, "--resume-from-checkpoint", "latest")
    assert code == 0, err
    for name in ("sft", "grpo"):
        assert torch.equal(weights(run / name), weights(finished / name))
    assert (run / "grpo" / "held_out.jsonl").read_text() == (finished / "grpo" / "held_out.jsonl").read_text()


def weights(folder):
    from safetensors.torch import load_file

    return torch.cat([value.float().flatten() for _, value in sorted(load_file(folder / "model" / "model.safetensors").items())])


def test_a_lora_is_merged_at_the_end_of_each_stage(command, model, tmp_path):
    run = tmp_path / "run"
    options = ["--rank", 2, "--stages", "sft", "--no-blind", "--hack-cases", 0, "--stability-pairs", 0]
    code, _, err = command(train_reward_model, "--model", model, "--output-dir", run, *OPTIONS, *options)
    assert code == 0, err
    assert (run / "sft" / "adapter" / "adapter_model.safetensors").is_file()
    assert weights(run / "sft").shape == weights_of(model).shape and not torch.equal(weights(run / "sft"), weights_of(model))


def weights_of(folder):
    from safetensors.torch import load_file

    return torch.cat([value.float().flatten() for _, value in sorted(load_file(folder / "model.safetensors").items())])


@pytest.fixture
def pair_set(tmp_path, monkeypatch):
    """The pair set that the 7B recipes name, with one pair; its folder's parent is the current one."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "preferences"
    folder.mkdir(parents=True)
    for name in ("photo", "a", "b"):
        write_image(folder / f"{name}.png", torch.rand(3, 64, 64))
    write_pairs(folder, [Pair("1", "photo.png", "a.png", "b.png", overall="a", identity="somebody")])
    return folder


@pytest.mark.parametrize("name", recipe_names(RewardModelConfig))
def test_every_recipe_parses_and_dry_runs(command, pair_set, name):
    assert load_config(RewardModelConfig, ["--config", name], prog="train-reward-model").folder.startswith("runs/")
    short = ("--max-tokens", "16", "--max-pixels", "25088")  # Qwen3.5's linear layers are traced by 64 tokens at a time
    code, out, err = command(train_reward_model, "--config", name, "--dry-run", "--device", "cpu", *short)
    assert code == 0, err
    assert "peak, estimated" in out and "trl.SFTConfig" in out and "trl.GRPOConfig" in out
    assert ("zero3.json" in out.replace("\n", "")) == name.endswith("zero3")
    parameters = {"qwen2": "8,292,166,656", "qwen3_vl": "8,767,123,696", "qwen3_5": "9,409,813,744"}
    assert (
        all((count in out) == name.startswith(model) for model, count in parameters.items())
        and not (pair_set.parent.parent / "runs").exists()
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "nowhere"], ["nowhere/metadata.jsonl", "no such file"]),
        (["--data", "empty"], ["empty", "holds no row"]),
        (["--data", "bad"], ["--data bad: line 1", "column 'inputt'"]),
        (["--form", "full", "--coherence", "nli:./nowhere"], ["nli:./nowhere", "no such folder"]),
        (["--form", "full", "--coherence", "nli:empty"], ["nli:empty", "could not be loaded"]),
        (["--evaluate", "--benchmark", "genai-bench", "--data", "nowhere"], ["--data nowhere", "no such folder"]),
    ],
)
def test_a_dry_run_looks_for_what_the_run_reads(command, model, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    for name, text in (("empty", ""), ("bad", '{"id": "1", "inputt": "x"}\n')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.jsonl").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = command(train_reward_model, "--model", model, *OPTIONS, "--dry-run", *options)
    message = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(message) == 1 and all(word in message[0] for word in words), err
    assert "peak, estimated" in out and sorted(tmp_path.rglob("*")) == before


def test_the_tiny_recipe_is_the_default():
    tiny, plain = (load_config(RewardModelConfig, argv, prog="train-reward-model") for argv in (["--config", "tiny"], []))
    assert tiny == plain
    real = RewardModelConfig.of(model="Qwen/Qwen2.5-VL-7B-Instruct")
    assert (real.device, real.beta, real.rate, real.sft_pairs, tiny.sft_pairs) == ("cuda", 0.04, 1e-6, 2000, 300)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--stages", "grpo", "sft"], ["--stages grpo sft", "in this order"]),
        (["--stages", "stf"], ["--stages", "sft"]),
        (["--coherence", "nli"], ["--coherence nli", "nli:PATH"]),
        (["--coherence", "nli:nowhere"], ["brief form"]),
        (["--form", "full", "--coherence", "nli:/nowhere"], ["nli:/nowhere", "no such folder"]),
        (["--consistency-weight", "2"], ["--consistency-weight 2"]),
        (["--reject-dimensions", "1.5"], ["--reject-dimensions 1.5"]),
        (["--reject-samples", "0"], ["--reject-samples 0"]),
        (["--held-out-pairs", "1"], ["--held-out-pairs 1"]),
        (["--group-size", "1"], ["--group-size 1"]),
        (["--benchmark", "genai-bench"], ["--benchmark genai-bench", "--evaluate"]),
        (["--evaluate", "--benchmark", "genai-bench", "--data", "nowhere"], ["nowhere"]),
        (["--trl", "epsilon_hihg=1"], ["epsilon_high"]),
        (["--trl", "num_generations=3"], ["TRL refuses"]),
        (["--deepspeed", "zero9"], ["--deepspeed zero9"]),
        (["--device", "cuda"], ["--device cuda"]),
        (["--model", "./nothing"], ["./nothing"]),
        (["--data", "nowhere"], ["nowhere"]),
        (["--resume-from-checkpoint", "latest"], ["holds no run"]),
        (["--resume-from-checkpoint", "elsewhere"], ["elsewhere", "latest"]),
        (["--shown", "sideways"], ["--shown sideways"]),
    ],
)
def test_mistakes_are_one_line(command, model, tmp_path, options, words):
    base = [] if "--model" in options else ["--model", model]
    code, _, err = command(train_reward_model, *base, "--output-dir", tmp_path / "run", *OPTIONS, *options)
    message = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(message) == 1 and all(word in message[0] for word in words), err
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_overwritten_by_accident(command, model, finished):
    before = (finished / "summary.json").read_text()
    code, _, err = command(train_reward_model, "--model", model, "--output-dir", finished, *OPTIONS)
    assert code == 2 and "holds another run" in err and (finished / "summary.json").read_text() == before


@pytest.mark.parametrize(
    ("option", "inside"), [("--model", "grpo/model"), ("--model", "model"), ("--data", "pairs"), ("--coherence", "judge")]
)
@pytest.mark.parametrize("evaluate", [[], ["--evaluate"]])
def test_overwrite_never_deletes_what_the_run_needs(command, model, tmp_path, option, inside, evaluate):
    run = tmp_path / "run"
    shutil.copytree(model, run / "grpo" / "model")
    (run / "model").symlink_to("grpo/model", target_is_directory=True)
    for name in ("pairs", "judge"):
        (run / name).mkdir()
    for name in ("config.json", "environment.json"):
        (run / name).write_text("{}")
    before = sorted(run.rglob("*"))
    value = f"nli:{run / inside}" if option == "--coherence" else run / inside
    options = ["--model", model, *OPTIONS, "--form", "full", *evaluate, option, value]
    code, _, err = command(train_reward_model, "--output-dir", run, "--overwrite", *options)
    assert code == 2 and f"--overwrite would delete {option} " in err and sorted(run.rglob("*")) == before, err
