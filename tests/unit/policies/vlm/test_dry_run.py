"""`align-vlm --dry-run` on the recipes of real size: what is refused, and what is proposed in its place."""

import re
import shlex
from dataclasses import replace

import pytest

from policies.vlm.align.align_config import AlignVlmConfig
from policies.vlm.align.align_plan import dry_run, planner_of
from portraitkit.config import load_config
from portraitkit.errors import ConfigError
from portraitkit.memory.plan import GIB

SMALL = ("--max-pixels", "50176")
"""Pictures of 64 tokens: the vision tower's windows are what a plan takes longest to run."""


@pytest.mark.parametrize(
    ("recipe", "memory", "more"),
    [
        ("makeup_7b", 18.5, SMALL),
        ("vlm_area_7b", 80, SMALL),
        ("facial_r1_7b", 80, SMALL),
        pytest.param("makeup_7b", 24, (), marks=pytest.mark.slow),
        pytest.param("vlm_area_7b", 80, (), marks=pytest.mark.slow),
        pytest.param("facial_r1_7b", 80, (), marks=pytest.mark.slow),
    ],
)
def test_what_is_proposed_for_a_published_recipe_can_be_typed_and_fits(capsys, recipe, memory, more):
    start = ["--config", recipe, "--device-memory", str(memory), *more]
    with pytest.raises(ConfigError) as refusal:
        dry_run(load_config(AlignVlmConfig, start, prog="align-vlm"))
    proposed = re.search(r"; (--.*) makes it fit", str(refusal.value))
    assert proposed is not None, refusal.value
    config = load_config(AlignVlmConfig, [*start, *shlex.split(proposed[1])], prog="align-vlm")
    planned = planner_of(config).memory(config)
    assert planned is not None and planned.peak <= memory * GIB


def test_the_published_batch_is_kept_on_eight_devices(capsys):
    """As docs/align_vlm.md has it."""
    keeps = {
        "vlm_area_7b": ("--trl", "per_device_train_batch_size=4", "gradient_accumulation_steps=1"),
        "makeup_7b": ("--trl", "per_device_train_batch_size=2", "gradient_accumulation_steps=1"),
        "facial_r1_7b": ("--trl", "per_device_train_batch_size=4", "gradient_accumulation_steps=1"),
    }
    for recipe, options in keeps.items():
        published, spread = (load_config(AlignVlmConfig, ["--config", recipe, *more], prog="align-vlm") for more in ((), options))
        published = replace(published, plan_devices=4 if recipe == "facial_r1_7b" else 1)
        spread = replace(spread, plan_devices=8)
        one, eight = (dict(planner_of(config).batch(config)) for config in (published, spread))
        assert one["grpo"].split(":")[0] == eight["grpo"].split(":")[0] and one["grpo"].split(";")[1] == eight["grpo"].split(";")[1]
