"""--weights last-norm: GRPO moves the gains of the language part's last norm, and nothing else."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import TrainerCallback

from policies.vlm.align.align_config import AlignVlmConfig
from portraitkit.config import load_config
from portraitkit.errors import ConfigError
from portraitkit.vlm.model import be_quiet, load_model, train_last_norm
from portraitkit.vlm.task import ASKED, Score
from portraitkit.vlm.trainer_arguments import CHECKPOINTING, grpo_arguments, grpo_values, lora_arguments
from portraitkit.vlm.trainer_options import TrainerOptions
from portraitkit.vlm.trainers import make_grpo_trainer
from reward_models.training.config import RewardModelConfig

OPTIONS = TrainerOptions(
    device="cpu", dtype="float32", prompts_per_step=2, group_size=4, max_tokens=8, max_train_steps=1, warmup_steps=0, checkpointing_steps=0
)


def test_the_norm_before_the_head_is_what_is_trained(tiny_vlm):
    model = load_model(str(tiny_vlm[2]))
    train_last_norm(model)
    assert [name for name, value in model.named_parameters() if value.requires_grad] == ["model.language_model.norm.weight"]


@pytest.mark.parametrize("rank", [0, 2])
def test_an_update_moves_it_or_the_lora(tiny_vlm, rows, brightness, tmp_path, rank):
    be_quiet()
    options = replace(OPTIONS, rank=rank)
    task = replace(brightness, score=lambda text, truth, mode: Score(len(text) % 5 / 4, {"length": len(text) % 5 / 4}, None))
    model = load_model(str(tiny_vlm[2]))
    arguments = grpo_arguments(options, str(tmp_path))
    given = (model, tiny_vlm[1], task.brief, rows, arguments, TrainerCallback(), task, "fixed", lora_arguments(options))
    trainer = make_grpo_trainer(*given, last_norm=True)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved and all(("lora_" if rank else "language_model.norm.") in name for name in moved)


def test_what_is_trained_has_its_own_usual_rate():
    assert AlignVlmConfig(weights="last-norm").rate == 0.1 and AlignVlmConfig(rank=8).rate == AlignVlmConfig(weights="all").rate == 1e-4
    real = "Qwen/Qwen2.5-VL-7B-Instruct"
    assert AlignVlmConfig(model=real).rate == 1e-6 and AlignVlmConfig(model=real, rank=8).rate == 1e-5
    assert RewardModelConfig().rate == 3e-5 and RewardModelConfig(weights="last-norm").rate == 0.1
    assert AlignVlmConfig(learning_rate=0.5).rate == 0.5


def test_a_real_model_has_other_defaults_than_the_embedded_one_and_its_offspring(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({ASKED: "brief"}))
    for argv in ([], ["--task", "makeup"], ["--model", "embedded"], ["--model", str(tmp_path)]):
        config = load_config(AlignVlmConfig, argv, prog="align-vlm")
        assert (config.weights, config.rate, config.max_train_steps, config.max_tokens) == ("last-norm", 0.1, 48, 96)
    assert AlignVlmConfig.of(weights="all", max_tokens=8).max_tokens == 8
    config = AlignVlmConfig.of(model="Qwen/Qwen2.5-VL-7B-Instruct")
    assert (config.weights, config.rate, config.max_train_steps, config.max_tokens) == ("all", 1e-6, 250, 512)


def test_a_tower_that_would_stay_as_it_is_is_not_said_to_be_trained():
    with pytest.raises(ConfigError, match="--no-freeze-vision: --weights last-norm"):
        AlignVlmConfig(freeze_vision=False, weights="last-norm")
    assert not AlignVlmConfig(freeze_vision=False, weights="all").freeze_vision


def test_nothing_is_recomputed_for_the_last_norm(tmp_path):
    last, every = (grpo_values(AlignVlmConfig(weights=which, gradient_checkpointing=True), str(tmp_path)) for which in ("last-norm", "all"))
    assert every[CHECKPOINTING] and not last[CHECKPOINTING]
