"""Our additions to TRL's trainers."""

import copy
from dataclasses import replace

import torch
from transformers import TrainerCallback
from trl import GRPOConfig, SFTConfig

from portraitkit.pictures.images import write_image
from portraitkit.vlm.load import be_quiet
from portraitkit.vlm.train import make_grpo_trainer, make_sft_trainer

PLAIN = {"use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 1, "per_device_train_batch_size": 2, "disable_tqdm": True}


def test_resuming_loads_every_weight_of_a_checkpoint(tiny_vlm, rows, brightness, tmp_path):
    """Its names in the file are not those of the modules: transformers' own trainer would skip them without a word."""
    model, processor, _ = tiny_vlm
    stored = {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "checkpoint-1")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    arguments = SFTConfig(output_dir=str(tmp_path), max_length=None, **PLAIN)
    trainer = make_sft_trainer(other, processor, brightness.brief, rows[:2], arguments, TrainerCallback())
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
    assert all(torch.equal(value, stored[name]) for name, value in trainer.model.state_dict().items())


def test_pictures_in_files_train_as_pictures_in_memory_do(tiny_vlm, rows, brightness, tmp_path):
    be_quiet()
    model, processor, _ = tiny_vlm
    filed = []
    for place, row in enumerate(rows[:2]):
        write_image(tmp_path / f"{place}.png", row.pictures[0])
        filed.append(replace(row, pictures=(tmp_path / f"{place}.png",)))
    losses = []
    for some in (rows[:2], filed):
        arguments = SFTConfig(output_dir=str(tmp_path / "sft"), max_length=None, dataloader_pin_memory=False, save_strategy="no", **PLAIN)
        trainer = make_sft_trainer(copy.deepcopy(model), processor, brightness.brief, some, arguments, TrainerCallback())
        losses.append(trainer.train().training_loss)
    assert losses[0] == losses[1]
    options = {"num_generations": 2, "max_completion_length": 4, "dataloader_pin_memory": False, "save_strategy": "no"}
    arguments = GRPOConfig(output_dir=str(tmp_path / "grpo"), **options, **PLAIN)
    trainer = make_grpo_trainer(copy.deepcopy(model), processor, brightness.brief, filed, arguments, TrainerCallback(), brightness, "fixed")
    assert trainer.train().global_step == 1
