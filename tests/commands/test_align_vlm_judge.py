"""`align-vlm --reward judge:...` as a user runs it: the recipe, a run that is resumed, a folder of one's own, and what is refused."""

import json

import pytest
import torch
from scripted_endpoint import ScriptedEndpoint
from written import lines

from policies.vlm.align.align_config import AlignVlmConfig
from policies.vlm.align.inputs import check_groups
from policies.vlm.main import align_vlm
from policies.vlm.tasks.synthetic_rows import bare_person, makeup_row
from portraitkit.config import load_config
from portraitkit.errors import ConfigError
from portraitkit.pictures.images import write_image

OPTIONS = [
    "--device",
    "cpu",
    "--dtype",
    "float32",
    "--train-rows",
    "8",
    "--validation-rows",
    "2",
    "--held-out-rows",
    "4",
    "--probe-rows",
    "2",
    "--prompts-per-step",
    "2",
    "--group-size",
    "2",
    "--max-tokens",
    "8",
    "--samples",
    "2",
    "--max-train-steps",
    "2",
    "--validation-steps",
    "0",
    "--prompt",
    "brief",
]
TINY = ["--config", "tiny_makeup_judge", *OPTIONS, "--group-size", 4, "--max-tokens", 64, "--probe-rows", 2, "--max-train-steps", 3]


def weights(run):
    from safetensors.torch import load_file

    return load_file(run / "model" / "model.safetensors")


@pytest.mark.slow
def test_the_makeup_recipe_with_the_embedded_judge_resumed(command, tmp_path, monkeypatch, interrupt_after):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    code, _, err = command(align_vlm, "--output-dir", whole, *TINY)
    assert code == 0, err
    summary = json.loads((whole / "summary.json").read_text())
    judge = summary["judge"]
    assert judge["part"] == "judge" and judge["weight"] == 0.2 and judge["n"] + judge["unjudged"] == 4
    assert judge["before"] + judge["after"] == pytest.approx(1)  # each row's two answers are compared with each other
    steps = [row for row in lines(whole / "metrics.jsonl") if row["kind"] == "grpo" and "reward" in row]
    assert all(0 <= row["rewards/judge/mean"] <= 1 and row["judge_unjudged"] == 0 for row in steps)
    assert sum(row["judge_asked"] for row in steps) > 0
    probe = json.loads((whole / "judge_probe.json").read_text())
    page, card = (whole / "report.html").read_text(), (whole / "model" / "README.md").read_text()
    assert "overdone" in {kind["name"] for kind in probe["kinds"]} and "overdone" in page and "judge:embedded" in page
    assert "judge:embedded" in card and json.loads((whole / "config.json").read_text())["reward_weights"] == [1.0, 1.0, 0.2]
    with monkeypatch.context() as patch:
        interrupt_after(patch, "grpo", 1)
        code, _, err = command(align_vlm, "--output-dir", parts, *TINY)
    assert code == 130, err
    code, _, err = command(align_vlm, "--output-dir", parts, *TINY, "--resume-from-checkpoint", "latest")
    assert code == 0, err
    names = ("reward", "loss", "rewards/judge/mean", "judge_asked", "judge_unjudged")
    told = [
        [[row.get(name) for name in names] for row in lines(run / "metrics.jsonl") if row["kind"] == "grpo" and "reward" in row]
        for run in (whole, parts)
    ]
    assert len(told[0]) == 3
    assert told[0] == told[1]
    one, two = weights(whole), weights(parts)
    assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())
    assert (whole / "answers.jsonl").read_bytes() == (parts / "answers.jsonl").read_bytes()


def test_the_check_of_action_units_is_said_to_be_no_judge(command, model, tmp_path):
    run = tmp_path / "run"
    code, _, err = command(align_vlm, "--task", "emotion", "--reward", "judge:embedded", "--model", model, "--output-dir", run, *OPTIONS)
    assert code == 0, err
    assert "no judge, a check of the action units" in err and "Probe of the unit check" in err
    assert "was added to the reward with weight 0.2" in err
    steps = [row for row in lines(run / "metrics.jsonl") if row["kind"] == "grpo" and "reward" in row]
    assert len(steps) == 2 and all("rewards/unit_check/mean" in row and row["judge_asked"] == 0 for row in steps)
    assert "check of action units (no judge)" in (run / "report.html").read_text()


def test_a_probe_asks_an_endpoint_about_the_reasoning(command, model, tmp_path, monkeypatch):
    from reward_models.judge.backends import HttpBackend

    with ScriptedEndpoint(lambda body: f"<score>{3 if 'faithful' in str(body) else 8}</score>") as endpoint:
        from portraitkit.endpoint import Endpoint

        monkeypatch.setattr(HttpBackend, "connect", lambda url, **_: (HttpBackend(Endpoint(url, "rater")), {}))
        run, judge = tmp_path / "run", f"judge:{endpoint.url}"
        given = ["--task", "emotion", "--reward", judge, "--model", model, "--output-dir", run, *OPTIONS, "--probe"]
        code, _, err = command(align_vlm, *given)
    assert code == 0 and endpoint.requests, err
    kinds = {kind["name"]: kind for kind in json.loads((run / "judge_probe.json").read_text())["kinds"]}
    assert kinds["flattering"]["judge"] == pytest.approx(2 / 9) and kinds["empty"]["judge"] == 0
    assert "judge_probe.json" in {path.name for path in run.iterdir()} and "flattering" in (run / "report.html").read_text()


@pytest.fixture
def folder(tmp_path):
    """Rows of synthetic people as make-preferences makeup writes them."""
    data = tmp_path / "data"
    data.mkdir()
    for split, count in (("train", 8), ("test", 2)):
        rows = []
        for seed in range(count):
            made = makeup_row("train", seed)
            write_image(data / f"{split}{seed}.png", made["image"])
            write_image(data / f"{split}{seed}_bare.png", bare_person("train", seed).clean)
            names = {"image": f"{split}{seed}.png", "bare_image": f"{split}{seed}_bare.png"}
            rows.append({**names, "solution": made["solution"]})
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    from tiny_judge import write_tiny_judge

    return write_tiny_judge(tmp_path_factory.mktemp("judge"), steps=2)  # its form is held to by the decoder


def test_a_folder_of_ones_own_needs_the_bare_photos(command, model, judge, folder, tmp_path):
    given = ["--task", "makeup", "--model", model, "--reward", f"judge:{judge}", "--data", folder, *OPTIONS, "--probe"]
    code, _, err = command(align_vlm, *given, "--output-dir", tmp_path / "run")
    assert code == 0, err
    probe = json.loads((tmp_path / "run" / "judge_probe.json").read_text())
    assert probe["judge"] > 0 and {kind["name"] for kind in probe["kinds"]} >= {"shuffled", "overdone"}
    path = folder / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for change, words in (
        ({"bare_image": None}, "line 3: has no bare_image, the same photo without makeup"),
        ({"bare_image": "../outside.png"}, "leaves the folder"),
        ({"bare_image": "gone.png"}, "must name a file beside"),
    ):
        path.write_text("".join(json.dumps({**row, **(change if number == 2 else {})}) + "\n" for number, row in enumerate(rows)))
        code, _, err = command(align_vlm, *given, "--output-dir", tmp_path / "other")
        message = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(message) == 1 and words in message[0], err
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--task", "area", "--reward", "judge:embedded"], ["task area takes no judge", "leave --reward out"]),
        (["--task", "preference", "--reward", "judge:embedded"], ["task preference takes no judge"]),
        (["--task", "makeup", "--reward", "texture"], ["--reward texture", "judge:SOURCE"]),
        (["--task", "makeup", "--reward", "judge:embedded:versus_anchor"], ["use win_rate or score"]),
        (["--task", "makeup", "--reward", "judge:embedded", "--stages", "sft"], ["add it to --stages"]),
        (["--task", "makeup", "--reward", "judge:embedded", "--export", "verl"], ["--reward", "--export"]),
        (["--task", "makeup", "--reward", "judge:embedded", "--reward-file", "a.py:f"], ["--reward-file"]),
        (["--task", "makeup", "--reward", "judge:nowhere/at-all"], ["nowhere/at-all"]),
        (["--task", "emotion", "--reward", "judge:http://127.0.0.1:9/v1"], ["nothing answers there"]),
        (["--task", "makeup", "--reward", "judge:embedded", "--reward-weights", "1", "1"], ["format, accuracy, judge"]),
    ],
)
def test_mistakes_are_one_line(command, model, tmp_path, options, words, monkeypatch):
    if "http" in options[-1]:
        monkeypatch.setattr("policies.vlm.align.align.open_all_rows", None)  # who does not answer is told before rows are made
    code, _, err = command(align_vlm, "--model", model, "--output-dir", tmp_path / "run", *OPTIONS, *options)
    message = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(message) == 1 and all(word in message[0] for word in words), err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_names_the_judge_and_loads_nothing(command, monkeypatch):
    code, out, err = command(align_vlm, "--config", "makeup_judge_8x80gb", "--dry-run", "--device", "cpu")
    assert code == 0, err
    assert "judge:Qwen/Qwen3-VL-8B-Instruct" in " ".join(out.split())
    code, _, err = command(align_vlm, "--task", "area", "--reward", "judge:embedded", "--dry-run")
    assert code == 2 and "takes no judge" in err


def test_groups_that_devices_would_split_are_refused():
    given = ["--task", "makeup", "--reward", "judge:embedded", "--group-size", "4", "--trl"]
    split = load_config(AlignVlmConfig, [*given, "per_device_train_batch_size=2", "gradient_accumulation_steps=1"], prog="align-vlm")
    with pytest.raises(ConfigError, match="compares all 4 answers of a group, but a device would take 2"):
        check_groups(split)
