import pytest
from trl import GRPOConfig

from portraitkit.errors import ConfigError
from portraitkit.vlm.trl_arguments import build_arguments, parse_extra


def test_values_are_json_or_text():
    extra = ("epsilon_high=0.28", "loss_type=dr_grpo", "use_vllm=false", 'generation_kwargs={"min_p": 0.1}')
    assert parse_extra(extra, GRPOConfig) == {
        "epsilon_high": 0.28,
        "loss_type": "dr_grpo",
        "use_vllm": False,
        "generation_kwargs": {"min_p": 0.1},
    }


@pytest.mark.parametrize(("item", "words"), [("epsilon_hihg=1", "did you mean 'epsilon_high'"), ("beta", "name=value")])
def test_mistakes_are_named(item, words):
    with pytest.raises(ConfigError, match=words):
        parse_extra((item,), GRPOConfig)


def test_what_trl_refuses_is_one_line(tmp_path):
    values = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "per_device_train_batch_size": 3, "num_generations": 2}
    with pytest.raises(ConfigError) as error:
        build_arguments(GRPOConfig, values)
    assert "TRL refuses" in str(error.value) and "\n" not in str(error.value)
