"""The planner of `train-reward-model` against the memory of real training stages of the embedded judge."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from portraitkit.memory.trace import LiveBytes
from portraitkit.runs.folder import SilentRunFolder
from portraitkit.runs.terminal import Interruptible
from portraitkit.vlm.model import be_quiet, load_processor
from portraitkit.vlm.shared_prefix import tower_once
from portraitkit.vlm.stages import RunContext
from reward_models.judge.pairs import open_pairs
from reward_models.judge.settings import view_of
from reward_models.training.config import RewardModelConfig
from reward_models.training.plan import planner_of
from reward_models.training.stages import fit, judge_task

CONFIG = RewardModelConfig.of(
    sft_batch=8,
    sft_steps=2,
    prompts_per_step=2,
    group_size=4,
    max_train_steps=2,
    generation_batch=1,
    validation_steps=0,
    checkpointing_steps=0,
)


@pytest.mark.parametrize(
    ("stage", "changes"),
    [("sft", {}), ("sft", {"rank": 8, "gradient_checkpointing": True}), ("grpo", {}), ("grpo", {"accumulation_steps": 2, "beta": 0.04})],
)
def test_the_plan_is_within_a_tenth_of_what_is_measured(tmp_path, monkeypatch, stage, changes):
    # Each prompt with each of its answers, as the planner counts.
    monkeypatch.setattr("portraitkit.vlm.stages.read_once", tower_once)
    planned, measured = plan_and_peak(tmp_path, stage, changes)
    assert planned == pytest.approx(measured, rel=0.1)


def test_prompts_that_are_read_once_need_no_more_than_planned(tmp_path):
    planned, measured = plan_and_peak(tmp_path, "grpo", {})
    assert measured < planned


def plan_and_peak(tmp_path, stage, changes) -> tuple[int, int]:
    """Bytes that a stage is planned with, and the most that were alive in two steps of it."""
    be_quiet()
    view = view_of("embedded")
    processor = load_processor("embedded")
    rows = [row for pair in open_pairs("embedded", {"train": 4}, 0)["train"] for row in view.rows(pair)]
    longest = max(len(processor.tokenizer(row.target)["input_ids"]) for row in rows) + 2  # and the end of the turn
    config = replace(CONFIG, max_tokens=longest, stages=(stage,), **changes)
    silent = SimpleNamespace(is_main_process=False, num_processes=1, wait_for_everyone=lambda: None)
    context = RunContext(config, SilentRunFolder(tmp_path), processor, view.prompt, Interruptible(), Console(quiet=True), silent)
    task = judge_task(view) if stage == "grpo" else None
    with LiveBytes((), ("cpu",)) as live:
        fit(context, stage, "embedded", rows, steps=2, task=task)
    memory = planner_of(config).memory(config)
    assert memory is not None
    return memory.peak, live.peak
