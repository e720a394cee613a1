"""The options of `align-retoucher`: in groups, with the defaults of their backbone."""

import pytest

from policies.retoucher.config import RetoucherConfig
from portraitkit.config import load_config
from portraitkit.errors import ConfigError


def shown(capsys, *options: str) -> str:
    with pytest.raises(SystemExit):
        load_config(RetoucherConfig, ["--help", *options], prog="align-retoucher")
    return capsys.readouterr().out


def test_help_is_in_groups_and_shows_the_defaults_of_the_backbone(capsys):
    tiny, real = shown(capsys), shown(capsys, "--backbone", "flux_kontext")
    titles = [line[:-1] for line in tiny.split("Example:")[1].splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles[:4] == ["What and where", "Model", "Rollouts", "Dynamic Path Guidance"] and len(titles) == 9
    assert "None" not in tiny.replace("None keeps", "") and "--dpg, --no-dpg" in tiny
    device = [text.split("--device TEXT")[1].split("--quantize")[0] for text in (tiny, real)]
    assert device[0].rstrip().endswith("cpu)") and device[1].rstrip().endswith("cuda)")


def test_an_option_that_is_gone_says_what_to_do():
    with pytest.raises(ConfigError, match="^--advantage-clip is gone: advantages are clipped to 5, as Flow-GRPO does$"):
        load_config(RetoucherConfig, ["--advantage-clip", "3"], prog="align-retoucher")


def test_the_value_of_an_option_that_is_gone_names_the_new_ones(tmp_path):
    with pytest.raises(ConfigError, match="^--advantage per_reward is gone: give mixgrpo .* or gdpo"):
        load_config(RetoucherConfig, ["--advantage", "per_reward"], prog="align-retoucher")
    recipe = tmp_path / "old.toml"
    recipe.write_text('advantage = "per_reward"\n')
    with pytest.raises(ConfigError, match="the option advantage per_reward is gone: give mixgrpo .* or gdpo"):
        load_config(RetoucherConfig, ["--config", str(recipe)], prog="align-retoucher")
    with pytest.raises(ConfigError, match="^--global-std: goes with --advantage combined, not with gdpo"):
        load_config(RetoucherConfig, ["--advantage", "gdpo", "--global-std"], prog="align-retoucher")
