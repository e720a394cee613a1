"""--freeze-vision: no weight of the tower is trained, whoever asks for it."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback
from trl import SFTConfig

from portraitkit.errors import ConfigError
from portraitkit.vlm.model import be_quiet, check_frozen, load_model, vision_tower
from portraitkit.vlm.trainers import make_sft_trainer

PLAIN = {"use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 1, "per_device_train_batch_size": 2, "disable_tqdm": True}


def trainer_of(model, processor, task, rows, folder, **options):
    be_quiet()
    arguments = SFTConfig(output_dir=str(folder), max_length=None, dataloader_pin_memory=False, save_strategy="no", **PLAIN)
    return make_sft_trainer(model, processor, task.brief, rows[:2], arguments, TrainerCallback(), **options)


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], exclude_modules=".*visual.*")])
def test_the_tower_is_not_trained(tiny_vlm, rows, brightness, tmp_path, lora):
    _, processor, folder = tiny_vlm
    model = load_model(str(folder), freeze_vision=True)
    trainer = trainer_of(model, processor, brightness, rows, tmp_path, lora=lora, frozen=True)
    tower = {name: value.clone() for name, value in vision_tower(trainer.model).named_parameters()}
    others = {name: value.clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert tower and others and not any("visual" in name for name in others)
    trainer.train()
    assert all(torch.equal(value, tower[name]) for name, value in vision_tower(trainer.model).named_parameters())
    assert any(not torch.equal(value, others[name]) for name, value in trainer.model.named_parameters() if name in others)
    check_frozen(trainer.model, trainer.optimizer)


def test_a_tower_that_would_be_trained_is_refused(tiny_vlm, rows, brightness, tmp_path):
    model, processor, _ = tiny_vlm
    with pytest.raises(ConfigError, match="patch_embed.*would be trained"):
        trainer_of(copy.deepcopy(model), processor, brightness, rows, tmp_path, frozen=True)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))  # the tower's MLP has one, too
    with pytest.raises(ConfigError, match="lora_A.*would be trained"):
        check_frozen(adapted)


def test_what_is_in_the_optimiser_is_refused_when_training_begins(tiny_vlm, rows, brightness, tmp_path):
    _, processor, folder = tiny_vlm
    model = load_model(str(folder), freeze_vision=True)
    trainer = trainer_of(model, processor, brightness, rows, tmp_path, frozen=True)
    trainer.create_optimizer()
    trainer.optimizer.add_param_group({"params": [next(vision_tower(trainer.model).parameters())]})
    with pytest.raises(ConfigError, match="would be trained"):
        trainer.train()
