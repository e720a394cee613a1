"""Our additions to TRL's trainers."""

import copy

import torch
from trl import SFTConfig

from portraitkit.vlm.callbacks import Say
from portraitkit.vlm.train import make_sft_trainer


def test_resuming_loads_every_weight_of_a_checkpoint(tiny_vlm, rows, brightness, tmp_path):
    """Its names in the file are not those of the modules: transformers' own trainer would skip them without a word."""
    model, processor, _ = tiny_vlm
    stored = {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "checkpoint-1")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    arguments = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, max_length=None, report_to="none", max_steps=1)
    trainer = make_sft_trainer(other, processor, brightness.brief, rows[:2], arguments, Say(None))
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
    assert all(torch.equal(value, stored[name]) for name, value in trainer.model.state_dict().items())
