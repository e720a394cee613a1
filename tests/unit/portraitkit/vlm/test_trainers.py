"""Our additions to TRL's trainers, and rewards as TRL calls them."""

import copy
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState
from trl import GRPOConfig, SFTConfig

from policies.vlm.tasks import BUILT_IN, load_task
from portraitkit.pictures.images import write_image
from portraitkit.vlm.model import be_quiet
from portraitkit.vlm.rows import make_rows
from portraitkit.vlm.trainers import Follow, make_grpo_trainer, make_sft_trainer, part_names, reward_functions, text_of

PLAIN = {"use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 1, "per_device_train_batch_size": 2, "disable_tqdm": True}


def test_resuming_loads_every_weight_of_a_checkpoint(tiny_vlm, rows, brightness, tmp_path):
    """Its names in the file are not those of the modules: transformers' own trainer would skip them in silence. Tokens are counted on."""
    model, processor, _ = tiny_vlm
    stored = {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "checkpoint-1")
    TrainerState(log_history=[{"num_tokens": 7.0}]).save_to_json(str(tmp_path / "checkpoint-1" / "trainer_state.json"))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    arguments = SFTConfig(output_dir=str(tmp_path), max_length=None, **PLAIN)
    trainer = make_sft_trainer(other, processor, brightness.brief, rows[:2], arguments, TrainerCallback())
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
    assert all(torch.equal(value, stored[name]) for name, value in trainer.model.state_dict().items())
    assert trainer._total_train_tokens == 7


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


TASKS = [name for name in BUILT_IN if load_task(name).make_row is not None]


@pytest.mark.parametrize("mode", ["paper", "fixed"])
@pytest.mark.parametrize("name", TASKS)
def test_the_parts_add_up_to_the_reward(name, mode):
    task = load_task(name)
    rows = make_rows(task, "train", 6, 0)
    functions = reward_functions(task, rows, mode)
    index = [0, 3, 3, 5]
    texts = [task.perfect(rows[0].truth), task.perfect(rows[1].truth), "nonsense", rows[5].target]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    columns = [function(completions=completions, index=index, image=None) for function in functions]
    totals = [sum(value for value in values if value is not None) for values in zip(*columns, strict=True)]
    expected = [task.score(text, rows[at].truth, mode).reward for text, at in zip(texts, index, strict=True)]
    assert totals == pytest.approx(expected)
    assert [function.__name__ for function in functions] == part_names(task, rows[0], mode)


def test_text_of_any_shape_that_trl_hands_over():
    assert (
        text_of("a") == text_of([{"role": "assistant", "content": "a"}]) == text_of([{"content": [{"type": "text", "text": "a"}]}]) == "a"
    )


def test_a_validation_comes_when_it_is_due_however_seldom_steps_are_logged():
    """It is made when its step is logged, which `--trl logging_steps=10` would leave to every tenth."""
    follow = Follow(Mock(), "grpo", Mock(requested=None), Mock(), Mock(), dict, 2)
    asked = []
    for step in range(1, 5):
        control = TrainerControl()
        follow.on_step_end(Mock(), SimpleNamespace(global_step=step), control)
        asked.append(control.should_log)
    assert asked == [False, True, False, True]
