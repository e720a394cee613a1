"""`align-retoucher` from the command line on the embedded retoucher: whole runs at the smallest size, mistakes, interrupts."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from diffusers import FluxKontextPipeline
from refusal import check_refusal
from safetensors.torch import load_file

from policies.retoucher.backbones import tiny
from policies.retoucher.config import RetoucherConfig
from policies.retoucher.main import align_retoucher
from portraitkit.config import load_config, recipe_names
from portraitkit.faces.arcface import DEFAULT_FOLDER, FILES
from portraitkit.runs.folder import RunFolder

TINY = {"photos-per-step": 1, "group-size": 2, "max-train-steps": 1, "validation-photos": 1, "held-out-photos": 2, "warmup-steps": 0}
SMALL = [text for name, value in TINY.items() for text in (f"--{name}", str(value))]
SHORT = [*SMALL, "--num-steps", "2", "--segments", "1"]


@pytest.mark.parametrize("name", recipe_names(RetoucherConfig))
def test_every_recipe_is_a_valid_configuration(name):
    config = load_config(RetoucherConfig, ["--config", name], prog="align-retoucher")
    assert config.output_dir.startswith("runs/")


SLOW_PLANS = ("flow_grpo_kontext", "flow_grpo_qwen_image_edit")
"""12 and 20 billion parameters; beautygrpo_kontext is planned in every run of the tests."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW_PLANS else []) for name in recipe_names(RetoucherConfig)]
)
def test_every_recipe_dry_runs(command, name):
    code, out, err = command(align_retoucher, "--config", name, "--dry-run", "--device", "cpu")
    assert code == 0, err
    assert "peak, estimated" in out and "not started" in out
    if name == "beautygrpo_kontext":
        assert "11,901,408,320, trained" in out and "data/portraits, which is not there" in out


FOR_TINY = ["--backbone", "tiny", "--photos", "embedded", "--config"]
"""What changes where a recipe of a large model runs on the embedded one; then the recipe."""
LARGE = [name for name in recipe_names(RetoucherConfig) if load_config(RetoucherConfig, ["--config", name], prog="").backbone != "tiny"]


TWIN_OF = dict.fromkeys(
    ["dpg_klein_8x80gb", "dpg_kontext_1x80gb", "dpg_kontext_8x80gb", "dpg_qwen_image_edit_8x80gb"], "beautygrpo_kontext"
)
TWIN_OF |= {"dpg_klein_1x24gb": "dpg_kontext_1x24gb", "nft_klein_8x80gb": "nft_kontext_8x80gb"}
"""Recipes that are the same run as another one's where both run on the embedded model: they differ in model, devices and sizes alone."""


def on_tiny(name):
    """Options of the recipe's smallest run on the embedded model."""
    recipe = load_config(RetoucherConfig, ["--config", name], prog="align-retoucher")
    judged = any(reward.startswith("judge:") for reward in recipe.all_rewards)  # by one that is still to be trained
    return [*FOR_TINY, name, *SMALL, "--eval-num-steps", "2", *(["--rewards", "judge:embedded:win_rate"] if judged else [])]


@pytest.mark.parametrize("name", LARGE)
def test_every_recipe_of_a_large_model_fits_the_embedded_one(capsys, name):
    recipe = load_config(RetoucherConfig, ["--config", name], prog="align-retoucher")
    config = load_config(RetoucherConfig, on_tiny(name), prog="align-retoucher")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("--backbone tiny: without the recipe's ")]
    assert len(said) == 1 and 'device = "cuda"' in said[0] and f"resolution = {recipe.resolution}" in said[0]
    assert (config.device, config.resolution, config.quantize, config.sharding) == ("cpu", None, "none", "none")
    kept = ("window", "sampler", "num_steps", "eta", "rank", "ratio", "advantage", "gradient_checkpointing", "optimizer")
    assert {option: getattr(config, option) for option in kept} == {option: getattr(recipe, option) for option in kept}
    if name in TWIN_OF:
        twin = load_config(RetoucherConfig, on_tiny(TWIN_OF[name]), prog="align-retoucher")
        sizes = {"output_dir": "", "plan_devices": 1, "micro_batch": 4}  # a group of two is below every micro-batch
        assert replace(config, **sizes) == replace(twin, **sizes)


@pytest.mark.parametrize("name", [name for name in LARGE if name not in TWIN_OF])
def test_every_recipe_of_a_large_model_runs_on_the_embedded_one(command, tmp_path, name):
    code, _, err = command(align_retoucher, *on_tiny(name), "--output-dir", tmp_path / "run")
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["backbone"] == "tiny"
    assert (tmp_path / "run" / "pytorch_lora_weights.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--resolution", "512"], "--resolution 512: the embedded retoucher works at 128 px"),
        (["--quantize", "nf4"], "--quantize nf4: --backbone tiny has no such option"),
        (["--guidance", "4"], "--guidance 4.0: --backbone tiny has no such option"),
        (["--sharding", "fsdp2"], "there is one; start several, or use --sharding none"),
    ],
)
def test_what_was_typed_is_not_left_out(command, tmp_path, options, words):
    code, _, err = command(align_retoucher, *FOR_TINY, "dpg_kontext_1x24gb", *SMALL, *options, "--output-dir", tmp_path / "run")
    assert code == 2 and words in err and not (tmp_path / "run").exists()


def test_evaluations_have_steps_of_their_own(command, tmp_path, monkeypatch):
    from policies.retoucher import evaluate

    seen, sample = set(), evaluate.sample_ode
    monkeypatch.setattr(evaluate, "sample_ode", lambda *given: seen.add(given[3]) or sample(*given))
    code, _, err = command(align_retoucher, *SHORT, "--eval-num-steps", 3, "--output-dir", tmp_path / "run")
    assert code == 0 and seen == {3}, err
    assert {load_config(RetoucherConfig, ["--config", name], prog="").evaluation_steps for name in LARGE} >= {28, 50}
    code, _, err = command(align_retoucher, *SHORT, "--eval-num-steps", -1, "--output-dir", tmp_path / "other")
    assert code == 2 and "--eval-num-steps -1: must be 0 or more" in err


def test_pref_grpo_is_rewarded_by_its_judge_alone():
    recipe = load_config(RetoucherConfig, ["--config", "pref_grpo_kontext"], prog="align-retoucher")
    assert [name.partition(":")[0] for name in recipe.all_rewards] == ["judge"] and recipe.all_rewards[0].endswith(":win_rate")


def test_help_shows_the_prompt_as_it_is(command):
    code, out, _ = command(align_retoucher, "--help")
    assert code == 0 and "Beautify this person's face" in " ".join(out.split())


def test_a_dry_run_says_what_fits_and_starts_nothing(command, tmp_path):
    options = ["--dry-run", "--group-size", 4, "--output-dir", tmp_path / "run"]
    code, out, err = command(align_retoucher, *options, "--device-memory", 1)
    assert code == 0, err
    assert "2,672,192, trained" in out and "peak, estimated" in out and "optimiser states" in out
    code, _, err = command(align_retoucher, *options, "--device-memory", 0.13)
    message = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(message) == 1 and "which has 0.13 GiB" in message[0] and "makes it fit" in message[0], err
    code, _, err = command(align_retoucher, *options, "--device-memory", 0.001)
    assert code == 2 and "no change that is known here makes it fit" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device-memory", "0"], "--device-memory 0: must be above 0"),
        (["--plan-devices", "0"], "--plan-devices 0: must be 1 or more"),
        (["--sharding", "zero5"], "--sharding"),
        (["--backbone", "mine.py:BACKBONE"], "--dry-run knows the architectures of"),
        (["--backbone", "flux_kontext", "--resolution", "100"], "multiples of 16"),
        (["--backbone", "flux_kontext", "--model", "./nowhere"], "no such folder"),
    ],
)
def test_mistakes_in_a_dry_run_are_one_line(command, options, words):
    code, _, err = command(align_retoucher, "--dry-run", *options)
    message = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(message) == 1 and words in message[0], err


@pytest.mark.parametrize("name", ["demo", *(name for name in recipe_names(RetoucherConfig) if name.startswith("tiny"))])
def test_the_embedded_recipes_run(command, tmp_path, name):
    more = ["--neighbor-anchors", 2] if name == "tiny_neighbor" else []  # of as many candidates
    code, _, err = command(align_retoucher, "--config", name, "--output-dir", tmp_path / "run", *SMALL, *more)
    assert code == 0, err
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    for measure in ("reward", "identity_distance", "blemish_residual", "texture_error"):
        change = summary["held_out"][measure]
        assert set(change) >= {"before", "after", "gain", "ci95"}
        assert abs(change["after"] - change["before"]) == pytest.approx(abs(change["gain"]), abs=1e-6)
    assert summary["network_evaluations"] > 0 and summary["seeds"] == [0] and summary["seconds"] > 0
    kinds = [json.loads(line)["kind"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("train") == 1 and kinds.count("validation") == 2
    assert (run / "report.html").stat().st_size > 10_000
    if name == "demo":
        pipeline = FluxKontextPipeline.from_pretrained(tiny.EMBEDDED, dtype=torch.float32, local_files_only=True)
        pipeline.load_lora_weights(str(run))
        assert pipeline.get_active_adapters()


def test_the_ablation_runs_arms_by_name_and_goes_on_where_it_stopped(command, tmp_path):
    options = ["--config", "ablation", "--output-dir", tmp_path / "run", *SMALL, "--group-size", 4, "--ablate-seeds", 1]
    options += ["--max-network-evaluations", 1]
    code, _, err = command(align_retoucher, *options)
    assert code == 2 and "--anchor wrong" in err and not (tmp_path / "run").exists()  # one photo has no other's anchor to take
    options += ["--photos-per-step", 2]

    def run(*more: object) -> list[dict]:
        code, _, err = command(align_retoucher, *options, *more)
        assert code == 0, err
        return [json.loads(line) for line in (tmp_path / "run" / "ablation.jsonl").read_text().splitlines()]

    some = run("--ablate-arms", "dpg", "nft-anchors")
    assert [row["arm"] for row in some] == ["dpg", "nft-anchors"]
    rows = run("--ablate-arms", "all-step-sde", "dpg", "nft-anchors")
    assert rows[:2] == some and [row["arm"] for row in rows[2:]] == ["all-step-sde"]
    spent = {row["arm"]: row["network_evaluations"] for row in rows}
    # Forward 1, backward 2, KL reference 1. NFT: six groups of four ODEs of four steps, each candidate learned from at two noise levels, as
    # four noises of the anchor are. All-step SDE: four steps, the first one shared by the group, three drawn.
    assert spent["nft-anchors"] == 6 * 4 * (4 + 2 * 4) + 6 * 4 * 2 * 4
    assert spent["all-step-sde"] == 2 * (1 + 4 * 3) + 2 * (4 + 4 * 2 * 4) and all(row["train_steps"] == 1 for row in rows)
    gained = rows[0]["reward_gain"]
    assert rows[0]["gain_per_1000_evaluations"] == pytest.approx(1000 * gained / spent["dpg"]) and rows[0]["diversity"] > 0
    table = (tmp_path / "run" / "ablation.md").read_text()
    assert all(f"| {arm} |" in table for arm in spent) and (tmp_path / "run" / "curves.png").is_file()
    ends = ("network_evaluations", "validation_gain")
    assert all([part[name] for part in row["curve"][-1:] for name in ends] == [row[name] for name in ends] for row in rows)
    (tmp_path / "run" / "ablation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    again = run("--ablate-arms", *spent)
    assert again[:-1] == rows[:-1] and again[-1]["arm"] == rows[-1]["arm"] and again[-1]["reward_gain"] == rows[-1]["reward_gain"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bogus", "1"], ["--bogus"]),
        (["--samplr", "cps"], ["--samplr", "--sampler"]),
        (["--sampler", "euler"], ["--sampler", "euler", "flow_sde, cps, dance_sde"]),
        (["--segments", "9"], ["--segments 9", "--num-steps"]),
        (["--group-size", "1"], ["--group-size 1", "2"]),
        (["--learning-rate", "0"], ["--learning-rate", "above 0"]),
        (["--lam-max", "1.5"], ["--lam-max", "1.5"]),
        (["--eta", "nan"], ["--eta"]),
        (["--sampler", "cps", "--eta", "1.5"], ["eta 1.5", "cps"]),
        (["--max-grad-norm", "-1"], ["--max-grad-norm", "above 0"]),
        (["--validation-steps", "0"], ["--validation-steps 0"]),
        (["--window", "all", "--num-steps", "1"], ["--num-steps 1", "stochastic"]),
        (["--window", "window", "--window-width", "9"], ["width 9"]),
        (["--lam-schedule", "constant", "--lam-max", "1"], ["--lam-max 1.0", "stochastic"]),
        (["--anchor", "wrong"], ["--anchor wrong", "--photos-per-step 1"]),
        (["--anchors", "file"], ["--anchors file", "--photos FOLDER"]),
        (["--anchors", "best-of-n", "--no-dpg"], ["--anchors best-of-n", "--dpg"]),
        (["--best-of", "1"], ["--best-of 1", "at least 2"]),
        (["--ablate", "--report-to", "tensorboard"], ["--ablate", "--report-to"]),
        (["--ablate", "--ablate-arms", "nft-anchor"], ["--ablate-arms nft-anchor", "did you mean 'nft-anchors'", "all-step-sde, k-"]),
        (["--ablate-arms", "nft"], ["--ablate-arms: needs --ablate"]),
        (["--config", "dmo"], ["dmo", "demo"]),
        (["--rewards", "textur"], ["textur", "texture"]),
        (["--reward-weights", "1"], ["--reward-weights", "1 values for 6 rewards"]),
        (["--backbone", "flux"], ["flux", "flux_kontext"]),
        (["--resolution", "512"], ["--resolution 512", "128"]),
        (["--model", "/nonexistent"], ["/nonexistent"]),
        (
            ["--backbone", "qwen_image_edit", "--device", "cpu", "--model", "/nonexistent"],
            ["/nonexistent", "QwenImageEditPipeline", "--model"],
        ),
        (["--guidance", "0.5"], ["--guidance 0.5", "at least 1"]),
        (["--quantize", "nf4"], ["--quantize nf4", "tiny"]),
        (["--init-adapter", "/nonexistent"], ["/nonexistent", "LoRA"]),
        (["--photos", "/nonexistent"], ["/nonexistent"]),
        (["--credit", "local", "--ratio", "guard"], ["--credit local", "--ratio"]),
        (["--resume-from-checkpoint", "latest"], ["checkpoint"]),
        (["--report-to", "wandbb"], ["wandbb"]),
    ],
)
def test_mistakes_are_one_line(command, tmp_path, options, words):
    code, out, err = command(align_retoucher, "--output-dir", tmp_path / "run", *SMALL, *options)
    check_refusal(code, out, err, words)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_another_run_is_never_overwritten(command, tmp_path):
    options = ["--output-dir", tmp_path / "run", *SHORT]
    assert command(align_retoucher, *options)[0] == 0
    before = (tmp_path / "run" / "summary.json").read_bytes()
    code, out, err = command(align_retoucher, *options)
    check_refusal(code, out, err, ["--overwrite"])
    assert (tmp_path / "run" / "summary.json").read_bytes() == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_saves_and_the_resumed_run_ends_the_same(tmp_path, command, monkeypatch, number, code):
    """The signal comes by way of the system, after the second of three steps."""
    goal = [*SHORT, "--max-train-steps", "3", "--validation-steps", "100", "--output-dir"]
    logged = RunFolder.log

    def log(self, step, **values):
        logged(self, step, **values)
        if (step, values.get("kind")) == (2, "train"):
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", log)
        ended, _, err = command(align_retoucher, *goal, tmp_path / "run")
    assert ended == code and "stopped at step 2; go on with --resume-from-checkpoint latest" in err, err
    assert json.loads(next((tmp_path / "run").glob("checkpoint-*/state.json")).read_text())["step"] == 2
    assert command(align_retoucher, *goal, tmp_path / "run", "--resume-from-checkpoint", "latest")[0] == 0
    if number == signal.SIGINT:
        assert command(align_retoucher, *goal, tmp_path / "whole")[0] == 0
        name = "pytorch_lora_weights.safetensors"
        ours, whole = load_file(tmp_path / "run" / name), load_file(tmp_path / "whole" / name)
        assert all(torch.allclose(ours[key], whole[key], atol=1e-6) for key in whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
    assert steps == [1, 2, 3]


def test_a_damaged_arcface_net_is_said_at_the_start(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    net = DEFAULT_FOLDER.expanduser() / FILES[0]
    net.parent.mkdir(parents=True)
    net.write_bytes(b"no net")
    code, out, err = command(align_retoucher, *SHORT, "--output-dir", tmp_path / "run")
    check_refusal(code, out, err, [str(net), "download it again"])
    assert not (tmp_path / "run").exists()


def test_nft_learns_from_the_policys_own_best(command, tmp_path):
    options = [*SMALL, "--config", "tiny_nft", "--max-train-steps", 2, "--anchors", "best-of-n", "--best-of", 2]
    code, _, err = command(align_retoucher, *options, "--output-dir", tmp_path / "run")
    assert code == 0, err
    assert list((tmp_path / "run" / "anchors").glob("*.png"))
    page = (tmp_path / "run" / "report.html").read_text()  # nft has no ratio, and no KL
    assert "Distance from the base" in page and "Ratio deviation" not in page and "KL to the base" not in page


@pytest.mark.gpu
def test_a_step_on_a_gpu(command, tmp_path):
    code, _, err = command(align_retoucher, "--config", "demo", "--output-dir", tmp_path / "run", *SMALL, "--device", "cuda")
    assert code == 0, err


JUDGED = [*SHORT, "--group-size", "4", "--max-train-steps", "2", "--checkpointing-steps", "1", "--validation-steps", "1"]


def test_a_judge_in_the_loop_and_resumed(command, judge_folder, tmp_path):
    options = [*JUDGED, "--dpg", "--reward", f"judge:{judge_folder}", "--output-dir"]
    code, _, err = command(align_retoucher, *options, tmp_path / "whole")
    assert code == 0, err
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["judge_asked"] == 2 * 2 * 4 and summary["judge_unreadable"] == 0
    assert {"verifiable", f"judge:{judge_folder}"} <= summary["held_out"].keys()
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "The judge and its check" in page and "at validation" in page and "of the rollouts" in page

    def ended():
        rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
        told = [{key: value for key, value in row.items() if "seconds" not in key and key != "time"} for row in rows]
        return told, load_file(tmp_path / "whole" / "pytorch_lora_weights.safetensors")

    told, whole = ended()
    (tmp_path / "whole" / "pytorch_lora_weights.safetensors").unlink()
    for path in (tmp_path / "whole" / "checkpoint-2").iterdir():
        path.unlink()  # as if killed while it was written
    code, _, err = command(align_retoucher, *options, tmp_path / "whole", "--resume-from-checkpoint", "latest")
    assert code == 0, err
    again, resumed = ended()
    assert again == told and all(torch.equal(resumed[key], whole[key]) for key in whole)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--reward", "judge:./nowhere"], ["judge ./nowhere", "no such folder"]),
        (["--reward", "judge:embedded:scoer"], ["scoer", "did you mean 'score'"]),
        (["--reward", "judge:http://127.0.0.1:9/v1"], ["nothing answers there"]),
        (["--reward", "texture"], ["'texture' is named 2 times"]),
        (["--reward", "judge:x/y", "--reward-weights", "1"], ["1 values for 7 rewards"]),
    ],
)
def test_mistakes_about_a_judge_are_one_line(command, tmp_path, options, words):
    code, out, err = command(align_retoucher, "--output-dir", tmp_path / "run", *SMALL, *options)
    check_refusal(code, out, err, words)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
