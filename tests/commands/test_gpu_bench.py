"""`make gpu-bench` with tiny models on the CPU: the code that measures real sizes on a GPU; and what `make bench` types."""

import json
from functools import partial

import pytest
import torch

from policies.retoucher.backbones import flux_kontext
from policies.retoucher.config import RetoucherConfig
from policies.vlm.align.align_config import AlignVlmConfig
from portraitkit.config import load_config
from portraitkit.runs.terminal import Interruptible
from portraitkit.vlm import model as vlm_model
from reward_models.training.config import RewardModelConfig
from tools.bench.gpu import retoucher, vlm
from tools.bench.gpu.config import GpuBenchConfig
from tools.bench.gpu.main import gpu_bench
from tools.bench.group_cost import ALL_STEPS, DPG
from tools.bench.processors import COMMANDS

SMALL = ["--tiny", "--group", "2", "--steps", "3", "--rank", "4"]
VLM = ["--vlm-group", "2", "--vlm-tokens", "4", "--vlm-updates", "2"]


@pytest.fixture
def few_words(monkeypatch, tmp_path):
    """16 tokens of text in place of 512, which take long in bf16 on CPUs that have none; under a name of its own, as plans are kept."""
    monkeypatch.setattr(flux_kontext, "BACKBONE", partial(flux_kontext.BACKBONE, text_tokens=16))
    (tmp_path / "embedded").symlink_to(retoucher.EMBEDDED)
    monkeypatch.setattr(retoucher, "EMBEDDED", tmp_path / "embedded")


@pytest.mark.parametrize("command", COMMANDS)
def test_make_bench_shortens_commands_by_options_that_there_are(command):
    name, *words = f"{command} {COMMANDS[command]}".split()
    options = {"align-retoucher": RetoucherConfig, "align-vlm": AlignVlmConfig, "train-reward-model": RewardModelConfig}[name]
    assert load_config(options, words, prog=name).max_train_steps == 6


def test_without_a_gpu_it_is_one_line_and_nothing_is_written(command, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, out, err = command(gpu_bench, "--output-dir", tmp_path / "run")
    assert code == 2 and out == "" and not (tmp_path / "run").exists()
    assert err.splitlines() == ["error: --device cuda: no CUDA device here; use --tiny for the same code with tiny models on the CPU"]


def test_tiny_models_run_through_all_of_it(command, tmp_path):
    code, out, err = command(gpu_bench, *SMALL, *VLM, "--pixels", "32", "--output-dir", tmp_path / "run")
    assert code == 0, err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["device"]["name"] == "CPU" and results["device"]["peak_flops"] is None
    dpg, every, vlm = results["rows"]
    assert [row["method"] for row in results["rows"]] == [DPG, ALL_STEPS, "GRPO by TRL"]
    assert every["evaluations"] == 2 * 3 + 3 * 2 * 2  # two candidates: three steps, two of them updated
    assert dpg["evaluations"] < every["evaluations"] and dpg["flops"] < every["flops"]
    assert every["details"]["lora_modules"] == 12 + 2 * 3  # of one double block and two single ones
    length = vlm["details"]["tokens_of_a_sequence"]
    assert vlm["evaluations"] == 2 * (4 * length - 1) and len(vlm["details"]["updates"]) == 2
    for row in results["rows"]:
        assert row["seconds"] > 0 and row["flops"] > 1e6 and row["utilisation"] is None and row["problem"] == ""
        assert row["evaluations_per_second"] == pytest.approx(row["evaluations"] / row["seconds"])
        assert 0.85 < row["peak_over_planned"] < 1.15
    page = (tmp_path / "run" / "results.md").read_text()
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3 and {line.count("|") for line in table} == {10}
    assert "a check of the code" in page and "fewer evaluations" in page and "`python -m tools.bench.gpu.main --tiny" in page
    assert "fewer evaluations" in out
    code, _, err = command(gpu_bench, *SMALL, "--output-dir", tmp_path / "run")
    assert code == 2 and "--overwrite" in err


def test_what_runs_out_of_memory_is_said_and_the_others_go_on(command, tmp_path, monkeypatch, few_words):
    optimise = retoucher.optimise_group

    def full_at_48(trainer, config, group, number):
        if config.resolution == 48 and not config.dpg and number:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB.")
        return optimise(trainer, config, group, number)

    monkeypatch.setattr(retoucher, "optimise_group", full_at_48)
    monkeypatch.setattr(retoucher, "device_limit", lambda memory, device: 2**20)
    options = ["--parts", "retoucher", "--pixels", "48", "32", "--output-dir", tmp_path / "run"]
    code, _, err = command(gpu_bench, *SMALL, *options)
    assert code == 0, err
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    assert [(row["method"], bool(row["problem"])) for row in rows] == [(DPG, False), (ALL_STEPS, True), (DPG, False), (ALL_STEPS, False)]
    reason = rows[1]["problem"]
    assert reason.startswith("CUDA out of memory. Tried to allocate 2.00 GiB; the run needs") and "makes it fit" in reason
    assert reason in (tmp_path / "run" / "results.md").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "cpu"], "use --tiny"),
        (["--pixels", "512", "100"], "--pixels 100: must be a multiple of 16"),
        (["--group", "1"], "--group 1: must be 2 or more"),
        (["--vlm-updates", "1"], "--vlm-updates 1: must be 2 or more"),
        (["--parts", "all"], "--parts all: must be"),
    ],
)
def test_mistakes_are_one_line(command, tmp_path, options, words):
    code, _, err = command(gpu_bench, *options, "--output-dir", tmp_path / "run")
    assert code == 2 and len(err.splitlines()) == 1 and words in err
    assert not (tmp_path / "run").exists()


def test_the_real_models_way_in_small(monkeypatch):
    """The published architecture's configuration, patches and stand-in tokenizer, with fewer and narrower layers, on the CPU."""
    sizes = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False}
    narrow = {"depth": 2, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "fullatt_block_indexes": [1]}
    real = vlm_model.PUBLISHED[vlm.REAL]
    vision, text = real["vision_config"] | narrow | {"out_hidden_size": 256}, real["text_config"] | sizes
    monkeypatch.setitem(vlm_model.PUBLISHED, "small/real", real | {"vision_config": vision, "text_config": text})
    monkeypatch.setattr(vlm, "REAL", "small/real")
    monkeypatch.setattr(GpuBenchConfig, "where", "cpu")
    bench = GpuBenchConfig(parts=("vlm",), vlm_side=112, vlm_group=2, vlm_tokens=6, vlm_updates=2)
    (row,) = vlm.vlm_cases(bench, Interruptible())[0].measure()
    assert row.model == "Qwen2.5-VL-7B" and row.details["tokens_of_a_picture"] == (112 // 28) ** 2
    assert row.details["lora_modules"] == 2 * 2  # queries and values of two layers
    assert 0.75 < row.peak / row.planned < 1.3  # on the CPU the head's temporary tiles are most of so narrow a model


@pytest.mark.gpu
def test_tiny_models_on_a_gpu(command, tmp_path):
    code, _, err = command(gpu_bench, *SMALL, *VLM, "--pixels", "32", "--device", "cuda", "--output-dir", tmp_path / "run")
    assert code == 0, err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["device"]["name"] == torch.cuda.get_device_name() and results["device"]["memory"] > 2**30
    for row in results["rows"]:
        assert row["problem"] == "" and row["seconds"] > 0
        assert 0 < row["peak"] <= row["details"]["peak_reserved"]
        assert row["utilisation"] is None or 0 < row["utilisation"] < 1
