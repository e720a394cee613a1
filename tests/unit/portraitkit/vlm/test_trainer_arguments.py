import dataclasses
import json

import pytest
from trl import GRPOConfig

from portraitkit.errors import ConfigError
from portraitkit.vlm.trainer_arguments import build_arguments, parse_extra


def test_values_are_json_or_text():
    extra = ("epsilon_high=0.28", "loss_type=dr_grpo", "use_vllm=false", 'generation_kwargs={"min_p": 0.1}')
    assert parse_extra(extra, GRPOConfig) == {
        "epsilon_high": 0.28,
        "loss_type": "dr_grpo",
        "use_vllm": False,
        "generation_kwargs": {"min_p": 0.1},
    }


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("epsilon_hihg=1", "did you mean 'epsilon_high'"),
        ("beta", "name=value"),
        ("epsilon_high=abc", "epsilon_high=abc: must be a number or null"),
        ("epsilon_high=NaN", "must be a number"),
        ("epsilon_high=1e999", "must be a number"),
        ("temperature=true", "must be a number$"),
        ("temperature=null", "must be a number$"),
        ("num_iterations=1.5", "must be a whole number"),
        ("num_iterations=true", "must be a whole number"),
        ("use_vllm=True", "must be true or false"),
        ("use_vllm=1", "must be true or false"),
        ("reward_weights=1", "must be a list in JSON or null"),
        ('reward_weights=[1, "2"]', "must be a list in JSON or null"),
    ],
)
def test_mistakes_are_named(item, words):
    with pytest.raises(ConfigError, match=words):
        parse_extra((item,), GRPOConfig)


@pytest.mark.parametrize(
    ("item", "value"),
    [
        ("temperature=1", 1),
        ("epsilon_high=null", None),
        ("run_name=2026", "2026"),  # text is asked for: digits are text, too
        ("run_name=null", None),
        ("reward_weights=[1, 0.5]", [1, 0.5]),
        ('model_init_kwargs={"attn_implementation": "sdpa"}', {"attn_implementation": "sdpa"}),
        ("lr_scheduler_type=cosine", "cosine"),
        ("save_strategy=no", "no"),
    ],
)
def test_a_value_has_its_fields_type(item, value):
    assert parse_extra((item,), GRPOConfig) == {item.partition("=")[0]: value}


def test_every_default_of_trl_has_the_type_that_is_asked_for():
    """But for those that GRPOConfig declares and leaves open."""
    for field in dataclasses.fields(GRPOConfig):
        if isinstance(field.default, str | int | float | None):
            text = field.default if isinstance(field.default, str) else json.dumps(field.default)
            parse_extra((f"{field.name}={text}",), GRPOConfig)


def test_what_trl_refuses_is_one_line(tmp_path):
    values = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "per_device_train_batch_size": 3, "num_generations": 2}
    with pytest.raises(ConfigError) as error:
        build_arguments(GRPOConfig, values)
    assert "TRL refuses" in str(error.value) and "\n" not in str(error.value)
