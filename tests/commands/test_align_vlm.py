"""align-vlm as a user runs it, on a tiny model with random weights in a folder."""

import html
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from written import lines

from policies.vlm.align.align_config import AlignVlmConfig
from policies.vlm.main import align_vlm
from policies.vlm.tasks.shape_area import TASK
from portraitkit.config import load_config, recipe_names
from portraitkit.pictures.images import write_image
from portraitkit.vlm.task import ASKED

SMALL = (
    "--device cpu --dtype float32 "
    "--train-rows 8 --validation-rows 2 --held-out-rows 4 --probe-rows 2 --prompts-per-step 2 --group-size 2 --max-tokens 8 "
    "--samples 2 --max-train-steps 2 --validation-steps 1 --sft-steps 1 --sft-batch 2"
)
OPTIONS = SMALL.split()


@pytest.mark.parametrize("name", recipe_names(AlignVlmConfig))
def test_every_recipe_is_a_valid_configuration(name):
    assert load_config(AlignVlmConfig, ["--config", name], prog="align-vlm").folder.startswith("runs/")


@pytest.mark.parametrize("name", recipe_names(AlignVlmConfig))
def test_every_recipe_dry_runs(command, name):
    code, out, err = command(align_vlm, "--config", name, "--dry-run", "--device", "cpu")
    assert code == 0, err
    assert "peak, estimated" in out and "trl.GRPOConfig" in out


def test_a_recipe_that_goes_on_from_another_says_so(command):
    code, out, err = command(align_vlm, "--config", "facial_r1_enhance_7b", "--dry-run", "--device", "cpu")
    assert code == 0, err
    assert "which --config facial_r1_7b makes from Qwen/Qwen2.5-VL-7B-Instruct" in " ".join(out.split()).replace(" │ │ │ ", " ")
    assert "data/raf-au, which is not there yet" in " ".join(out.split())
    assert "1 prompts x 8 answers an update" in " ".join(out.split()) and "10 updates take" in out and "8,292,166,656" in out
    code, _, err = command(align_vlm, "--config", "facial_r1_enhance_7b", "--device", "cpu")
    assert code == 2 and "--deepspeed zero3: needs a launcher" in err  # as its comment starts it
    code, _, err = command(align_vlm, "--config", "facial_r1_enhance_7b", "--device", "cpu", "--deepspeed", "None")
    assert code == 2 and "--model runs/facial-r1-7b/model: no such folder" in err


def test_a_run_writes_all_that_it_promises(command, model, tmp_path):
    run = tmp_path / "run"
    code, _, err = command(align_vlm, "--model", model, "--output-dir", run, "--stages", "sft", "grpo", *OPTIONS)
    assert code == 0, err
    summary = json.loads((run / "summary.json").read_text())
    for name in ("greedy", "sampled"):
        row = summary["held_out"][name]
        assert row["gain"] == pytest.approx(row["after"] - row["before"], abs=1e-5)
        assert row["gain_ci95"][0] <= row["gain"] + 1e-6 and row["ci95_before"][0] <= row["before"] + 1e-6
    assert summary["held_out"]["constant_floor"] > -3 and summary["held_out"]["shuffled_image"] >= -3
    assert {"relative_error", "unreadable"} <= summary["metrics"]["after"].keys() and summary["seconds"] > 0
    kinds = [row["kind"] for row in lines(run / "metrics.jsonl")]
    assert {"sft", "grpo", "validation"} <= set(kinds)
    assert len(lines(run / "answers.jsonl")) == 4 and json.loads((run / "probe.json").read_text())["rows"] == 2
    page = (run / "report.html").read_text()
    assert "best constant answer" in page and "http" not in page.replace("http-equiv", "")
    shuffled = summary["held_out"]
    for name in ("shuffled_image", "shuffled_image_after"):
        low, high = shuffled[f"{name}_ci95"]
        assert low - 1e-6 <= shuffled[name] <= high + 1e-6
    assert page.count("dash-dot") == 2
    again = tmp_path / "again"  # what was saved is a model that the command takes
    assert command(align_vlm, "--model", run / "model", "--output-dir", again, "--probe", *OPTIONS)[0] == 0
    assert (again / "probe.json").is_file() and not (again / "summary.json").exists()


def test_a_probe_leaves_a_report_and_the_folder_to_the_run_that_follows(command, model, tmp_path):
    run = tmp_path / "run"
    given = ["--model", model, "--output-dir", run, *OPTIONS, "--max-train-steps", 1]
    code, _, err = command(align_vlm, *given, "--probe")
    assert code == 0 and "report.html" in err, err
    assert {path.name for path in run.iterdir()} == {"config.json", "environment.json", "metrics.jsonl", "probe.json", "report.html"}
    page = (run / "report.html").read_text()
    assert "best constant answer" in page and "inversions" in page and "--probe" in page and "http" not in page.replace("http-equiv", "")
    (advice,) = [line for line in err.splitlines() if line.startswith(("train: ", "do not train yet: "))]
    assert f"{advice[1:]}." in html.unescape(page)
    (run / "notes.txt").write_text("mine")
    code, _, err = command(align_vlm, *given, "--probe")
    assert code == 2 and "holds another run" in err and (run / "notes.txt").is_file()
    (run / "notes.txt").unlink()
    assert command(align_vlm, *given, "--probe")[0] == 0
    code, _, err = command(align_vlm, *given)
    assert code == 0 and (run / "summary.json").is_file(), err
    code, _, err = command(align_vlm, *given, "--probe")
    assert code == 2 and "holds another run" in err and (run / "summary.json").is_file()


def test_a_lora_is_saved_as_one_and_can_be_gone_on_from(command, model, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    code, _, err = command(align_vlm, "--model", model, "--rank", 2, "--output-dir", first, *OPTIONS)
    assert code == 0, err
    assert (first / "model" / "adapter_model.safetensors").is_file()
    code, _, err = command(align_vlm, "--model", model, "--adapter", first / "model", "--output-dir", second, *OPTIONS)
    assert code == 0, err


def adapter_of(run):
    return load_file(run / "model" / "adapter_model.safetensors")


def test_the_makeup_curriculum_with_all_weights(command, model, tmp_path):
    lips, full = tmp_path / "lips", tmp_path / "full"
    options = [*OPTIONS, "--max-train-steps", 1, "--weights", "all"]
    code, _, err = command(align_vlm, "--task", "makeup-lips", "--model", model, "--prompt", "brief", "--output-dir", lips, *options)
    assert code == 0, err
    code, _, err = command(align_vlm, "--task", "makeup", "--model", lips / "model", "--output-dir", full, *options)
    assert code == 0, err
    assert json.loads((full / "summary.json").read_text())["task"] == "makeup"
    asked = [json.loads((run / "model" / "config.json").read_text())[ASKED] for run in (lips, full)]
    assert asked == ["brief", "brief"]  # the second step asks as the first did


def test_the_makeup_curriculum_with_a_lora(command, model, tmp_path):
    lips, both, full = (tmp_path / name for name in ("lips", "both", "full"))
    lora = ["--model", model, "--rank", 2, *OPTIONS, "--sft-steps", 4, "--max-train-steps", 1, "--learning-rate", 1e-12]
    assert command(align_vlm, "--task", "makeup-lips", "--stages", "sft", "--output-dir", lips, *lora)[0] == 0
    learned = adapter_of(lips)
    assert all(value.abs().sum() > 0 for name, value in learned.items() if "lora_B" in name)
    code, _, err = command(align_vlm, "--task", "makeup-lips", "--stages", "sft", "grpo", "--output-dir", both, *lora)
    assert code == 0, err
    code, _, err = command(align_vlm, "--task", "makeup", "--adapter", lips / "model", "--beta", 0.1, "--output-dir", full, *lora)
    assert code == 0, err
    for run in (both, full):  # a later stage or run trains the same LoRA on: nothing of the earlier one is lost
        assert sorted(path.name for path in (run / "model").iterdir() if path.is_dir()) == []
        later = adapter_of(run)
        assert later.keys() == learned.keys()
        for name, value in later.items():
            torch.testing.assert_close(value, learned[name], atol=1e-6, rtol=0)
    for options, words in (
        (["--rank", 4], ["--rank 4", "has 2"]),
        (["--rank", 2, "--lora-targets", "q_proj"], ["--lora-targets"]),
        (["--adapter", tmp_path / "damaged"], ["damaged", "does not fit"]),
        (["--model", lips / "model"], ["holds a LoRA", "--adapter"]),
    ):
        copy = tmp_path / "damaged"
        copy.mkdir(exist_ok=True)
        for path in (lips / "model").iterdir():
            (copy / path.name).write_bytes(path.read_bytes()[: 200 if path.suffix == ".safetensors" else None])
        given = ["--adapter", lips / "model", *lora, *options, "--output-dir", tmp_path / "other", "--overwrite"]
        code, _, err = command(align_vlm, "--task", "makeup", *given)
        assert not (tmp_path / "other").exists()
        message = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(message) == 1 and all(word in message[0] for word in words), err


@pytest.mark.parametrize("lora", [[], ["--rank", 2]])
def test_a_frozen_vision_tower_keeps_every_bit(command, model, tmp_path, lora):
    stages = ["--stages", "sft", "grpo", "--sft-steps", 3]  # the first update only warms up
    given = ["--model", model, "--output-dir", tmp_path / "run", *OPTIONS, *stages, "--freeze-vision", *lora]
    code, _, err = command(align_vlm, *given)
    assert code == 0, err
    if lora:
        assert not any("visual" in name for name in load_file(tmp_path / "run" / "model" / "adapter_model.safetensors"))
        return
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "run" / "model"))
    assert before.keys() == after.keys()
    same = {name: torch.equal(value, after[name]) for name, value in before.items()}
    assert any("visual" in name for name in same) and all(kept for name, kept in same.items() if "visual" in name)
    assert not all(kept for name, kept in same.items() if "visual" not in name)


@pytest.fixture(scope="module")
def uninterrupted():
    """LoRA rank -> the folder of a run that nothing stopped."""
    return {}


@pytest.mark.parametrize(("rank", "stopped"), [(0, ("sft", 1)), (2, ("sft", 3)), (2, ("grpo", 2)), (0, ("grpo", 3))])
def test_an_interrupted_run_goes_on_and_ends_as_the_uninterrupted_one(
    command, model, tmp_path, rank, stopped, monkeypatch, uninterrupted, interrupt_after
):
    options = ["--model", model, *OPTIONS, "--stages", "sft", "grpo", "--sft-steps", 3, "--max-train-steps", 3, "--rank", rank]
    options += ["--checkpointing-steps", 0]
    parts = tmp_path / "parts"
    if rank not in uninterrupted:
        assert command(align_vlm, "--output-dir", tmp_path / "whole", *options)[0] == 0
        uninterrupted[rank] = tmp_path / "whole"
    whole = uninterrupted[rank]
    with monkeypatch.context() as patch:
        interrupt_after(patch, *stopped)
        code, _, err = command(align_vlm, "--output-dir", parts, *options)
    assert code == 130 and "go on with --resume-from-checkpoint latest" in err
    code, _, err = command(align_vlm, "--output-dir", parts, *options, "--resume-from-checkpoint", "latest")
    assert code == 0, err
    for kind in ("sft", "grpo"):
        both = [[row for row in lines(run / "metrics.jsonl") if row["kind"] == kind and "loss" in row] for run in (whole, parts)]
        assert [[row["loss"] for row in some] for some in both] == [[row["loss"] for row in both[0]]] * 2 and len(both[0]) == 3
    told = [[row | {"time": 0} for row in lines(run / "metrics.jsonl") if row["kind"] == "validation"] for run in (whole, parts)]
    assert told[0] == told[1] and {row["step"] for row in told[0]} >= {1, 2, 3}, "a validation at which it was stopped is made"
    assert (whole / "answers.jsonl").read_text() == (parts / "answers.jsonl").read_text()
    assert not (parts / "sft" / "model").exists()


def test_a_run_that_was_killed_at_its_end_goes_on_from_its_newest_complete_checkpoint(command, model, tmp_path):
    options = ["--model", model, *OPTIONS, "--max-train-steps", 4, "--checkpointing-steps", 2, "--checkpoints-total-limit", 3]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert command(align_vlm, "--output-dir", whole, *options)[0] == 0
    assert command(align_vlm, "--output-dir", parts, *options)[0] == 0
    (parts / "checkpoint-4" / "trainer_state.json").unlink()  # as if killed while it was written
    (parts / "summary.json").unlink()
    code, _, err = command(align_vlm, "--output-dir", parts, *options, "--resume-from-checkpoint", "latest")
    assert code == 0, err
    rewards = [
        [row["reward"] for row in lines(run / "metrics.jsonl") if row["kind"] == "grpo" and "reward" in row] for run in (whole, parts)
    ]
    assert rewards[0] == rewards[1] and len(rewards[0]) == 4
    assert (whole / "answers.jsonl").read_text() == (parts / "answers.jsonl").read_text()


@pytest.fixture
def folder_of_rows(tmp_path):
    """Twelve rows of the task area whose pictures are JPEG files; the one of train.jsonl line 3 is cut in half."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split, count in (("train", 8), ("test", 4)):
        rows = []
        for index in range(count):
            assert TASK.make_row is not None
            made = dict(TASK.make_row("train", index))
            name = f"{split}-{index}.jpg"
            write_image(folder / name, made.pop("image"))
            rows.append({"image": name, **made})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cut(folder / "train-2.jpg")
    return folder


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_picture_costs_its_row_only(command, model, folder_of_rows, tmp_path):
    run = tmp_path / "run"
    options = ["--model", model, "--data", folder_of_rows, "--output-dir", run, *OPTIONS]
    code, _, err = command(align_vlm, *options)
    assert code == 0, err
    assert err.count("1 of 12 rows set aside") == 1 and "quarantine.jsonl" in err
    (aside,) = lines(run / "quarantine.jsonl")
    assert aside["row"].endswith("train.jsonl line 3") and "train-2.jpg" in aside["reason"] and "truncated" in aside["reason"]
    assert json.loads((run / "summary.json").read_text())["rows"] == {"train": 6, "validation": 1, "held_out": 4}
    export = tmp_path / "export"
    code, _, err = command(align_vlm, "--data", folder_of_rows, "--output-dir", export, "--export", "verl")
    assert code == 0 and len(lines(export / "quarantine.jsonl")) == 1, err


def test_one_held_out_row_is_refused(command, model, folder_of_rows, tmp_path):
    (folder_of_rows / "test.jsonl").write_text((folder_of_rows / "test.jsonl").read_text().splitlines()[0] + "\n")
    given = ["--model", model, "--data", folder_of_rows, "--output-dir", tmp_path / "run", *OPTIONS, "--max-unusable", 0.2]
    code, _, err = command(align_vlm, *given)
    message = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(message) == 1 and "1 held-out row" in message[0] and not (tmp_path / "run").exists(), err


def test_too_many_damaged_pictures_are_refused(command, model, folder_of_rows, tmp_path):
    cut(folder_of_rows / "test-0.jpg")
    given = ["--model", model, "--data", folder_of_rows, "--output-dir", tmp_path / "run", *OPTIONS]
    code, _, err = command(align_vlm, *given)
    message = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(message) == 1, err
    assert all(word in message[0] for word in ("2 of 12 rows", "--max-unusable 0.1", "train.jsonl line 3", "train-2.jpg"))
    assert not (tmp_path / "run").exists()
    code, _, err = command(align_vlm, *given, "--max-unusable", 0.2, "--probe")
    assert code == 0 and len(lines(tmp_path / "run" / "quarantine.jsonl")) == 2, err


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "processor_config.json"])
def test_a_damaged_model_leaves_no_folder(command, model, tmp_path, name):
    copy, run = tmp_path / "copy", tmp_path / "run"
    shutil.copytree(model, copy)
    cut(copy / name)
    code, _, err = command(align_vlm, "--model", copy, "--output-dir", run, *OPTIONS)
    message = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(message) == 1 and f"--model {copy}" in message[0], err
    assert not run.exists()


def test_dry_run_prints_the_plan_and_trls_arguments(command):
    code, out, _ = command(
        align_vlm, "--dry-run", "--model", "Qwen/Qwen2.5-VL-7B-Instruct", "--rank", 8, "--dtype", "bfloat16", "--gradient-checkpointing"
    )
    assert code == 0 and "peak, estimated" in out and "8,292,166,656" in out
    assert '"num_generations": 8' in out and '"loss_type"' in out and "LoraConfig" in out
    assert out.index('"num_generations"') < out.index("peak, estimated")  # what fits is read last


def test_a_dry_run_refuses_what_cannot_fit(command):
    options = ["--dry-run", "--prompts-per-step", 2, "--group-size", 2, "--max-tokens", 8]
    assert command(align_vlm, *options, "--device-memory", 8)[0] == 0
    code, out, err = command(align_vlm, *options, "--device-memory", 0.01)
    message = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(message) == 1 and "on a device (while: " in message[0] and "which has 10.2 MiB" in message[0], err
    assert "peak, estimated" in out
    code, _, err = command(align_vlm, *options, "--plan-devices", 0)
    assert code == 2 and "--plan-devices 0: must be 1 or more" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--task", "aera"], ["aera", "did you mean 'area'"]),
        (["--group-size", "1"], ["--group-size 1", "at least 2"]),
        (["--accumulation-steps", "7"], ["--accumulation-steps 7"]),
        (["--trl", "epsilon_hihg=1"], ["epsilon_high"]),
        (["--trl", "epsilon_high=abc", "--dry-run"], ["--trl epsilon_high=abc: must be a number or null"]),
        (["--trl", "num_generations=3"], ["TRL refuses"]),
        (["--loss-type", "gpro"], ["--loss-type gpro", "did you mean 'grpo'"]),
        (["--loss-type", "wrong", "--dry-run"], ["--loss-type wrong"]),
        (["--lr-scheduler", "cosin", "--dry-run"], ["--lr-scheduler cosin", "did you mean 'cosine'"]),
        (["--report-to", "wandbx"], ["--report-to wandbx"]),
        (["--device", "cuda"], ["--device cuda"]),
        (["--model", "./nothing"], ["./nothing"]),
        (["--data", "nowhere"], ["nowhere", "train.jsonl"]),
        (["--reward-weights", "1"], ["correctness"]),
        (["--adapter", "nowhere"], ["--adapter nowhere"]),
        (["--resume-from-checkpoint", "latest"], ["holds no run"]),
        (["--temperature", "0"], ["--temperature"]),
        (["--trl", "use_vllm=true", "vllm_mode=colocate"], ["vllm is not installed", "portraitkit[vllm]"]),
        (["--train-rows", "3", "--prompts-per-step", "4"], ["3 training rows", "4 prompts"]),
        (["--deepspeed", "zero3"], ["--deepspeed zero3: needs a launcher", "torchrun"]),
        (["--deepspeed", "zero9"], ["--deepspeed zero9: no such file"]),
        (["--max-unusable", "2"], ["--max-unusable 2"]),
        (["--max-tokens", "2040"], ["train row 1", "must fit into the model's context of 2048"]),
    ],
)
def test_mistakes_are_one_line(command, model, tmp_path, options, words):
    base = [] if "--model" in options else ["--model", model]
    code, _, err = command(align_vlm, *base, "--output-dir", tmp_path / "run", *OPTIONS, *options)
    assert "making rows" not in err or "--reward-weights" in options  # said before anything that takes time
    message = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(message) == 1 and all(word in message[0] for word in words), err
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_used_is_refused_before_rows_are_made(command, model, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("")
    for name, word in (("file", "is a file"), ("file/run", "is a file"), ("notes", "no run")):
        code, _, err = command(align_vlm, "--model", model, "--output-dir", tmp_path / name, *OPTIONS)
        assert code == 2 and err.startswith("error: ") and word in err and len(err.splitlines()) == 1, err
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["a.txt"]


def test_overwrite_never_deletes_what_is_no_run_or_what_the_run_needs(command, model, tmp_path):
    mine = tmp_path / "mine"  # a model: it has a config.json, as a run has
    shutil.copytree(model, mine)
    before = sorted(path.name for path in mine.iterdir())
    code, _, err = command(align_vlm, "--model", model, "--output-dir", mine, "--overwrite", *OPTIONS)
    assert code == 2 and "no run" in err and sorted(path.name for path in mine.iterdir()) == before
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "environment.json"):
        (run / name).write_text("{}")
    shutil.copytree(model, run / "model")
    code, _, err = command(align_vlm, "--model", run / "model", "--output-dir", run, "--overwrite", *OPTIONS)
    assert code == 2 and "would delete --model" in err and sorted(path.name for path in (run / "model").iterdir()) == before


@pytest.mark.parametrize(
    ("name", "processes", "rows"),
    [("facial_r1_7b", 4, 17_737), ("makeup_lips_7b", 1, 9_500), ("makeup_7b", 1, 9_500), ("vlm_area_7b", 1, 1_000)],
)
def test_a_recipe_runs_the_published_epoch(name, processes, rows):
    """Of the sources' data sets, with the processes that the recipe's comment starts."""
    config = load_config(AlignVlmConfig, ["--config", name], prog="align-vlm")
    assert config.max_train_steps == rows // (config.prompts_per_step * processes)
    assert config.loss_type == ("bnpo" if name.startswith("makeup") else "grpo")
