"""What only a CUDA device can show of the vision-language models: TRL's updates run there, in bfloat16 under autocast, too."""

import pytest
import torch
from tiny_vlm import CHANCE
from transformers import TrainerCallback

from portraitkit.vlm.model import be_quiet, load_model, load_processor
from portraitkit.vlm.rows import Row
from portraitkit.vlm.trainer_arguments import grpo_arguments, lora_arguments, start_processes
from portraitkit.vlm.trainer_options import TrainerOptions
from portraitkit.vlm.trainers import make_grpo_trainer

pytestmark = pytest.mark.gpu
DEVICE = "cuda"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_grpo_trains_a_lora_and_leaves_the_tower(tmp_path, dtype):
    be_quiet()
    sizes = {"prompts_per_step": 2, "group_size": 4, "max_tokens": 8, "max_train_steps": 2, "warmup_steps": 0, "temperature": 2.0}
    options = TrainerOptions(device=DEVICE, dtype=dtype, rank=4, gradient_checkpointing=True, **sizes)
    start_processes(options)
    model, processor = load_model("embedded", dtype=dtype, device=DEVICE, freeze_vision=True), load_processor("embedded")
    rows = [Row((torch.rand(3, 64, 64),), None, "", {}) for _ in range(4)]
    arguments = grpo_arguments(options, str(tmp_path))
    arguments.save_strategy = "no"
    given = (model, processor, CHANCE.prompt, rows, arguments, TrainerCallback(), CHANCE, "fixed", lora_arguments(options))
    trainer = make_grpo_trainer(*given, frozen=True)
    before = {name: value.detach().cpu().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    after = {name: value.detach().cpu() for name, value in trainer.model.named_parameters()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("lora_" in name and "visual" not in name for name in changed)
    assert all(value.isfinite().all() for value in after.values())
    assert {value.device.type for value in trainer.model.parameters()} == {DEVICE}
    assert {value.dtype for name, value in trainer.model.named_parameters() if "lora_" in name} == {torch.float32}
