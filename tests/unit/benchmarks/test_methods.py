"""`--method` in both commands: several values after one flag, or a flag for each."""

from pathlib import Path

import pytest

from benchmarks.blind_test.options import MakeConfig
from benchmarks.config import BenchmarkConfig
from portraitkit.config import load_config
from portraitkit.errors import ConfigError


@pytest.mark.parametrize("config", [BenchmarkConfig, MakeConfig])
@pytest.mark.parametrize("apart", [False, True])
def test_both_forms_say_the_same(config, apart, tmp_path):
    entries = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        entries.append(f"{name}={tmp_path / name}")
    argv = ["--method", entries[0], "--method", entries[1]] if apart else ["--method", *entries]
    methods = load_config(config, argv, prog="test").methods
    assert {name: Path(place) for name, place in methods.items()} == {name: tmp_path / name for name in ("one", "two")}


@pytest.mark.parametrize("config", [BenchmarkConfig, MakeConfig])
@pytest.mark.parametrize(
    ("entries", "message"), [(["x"], "must be NAME="), (["=a"], "must be NAME="), (["x=a", "x=b"], "x was given before")]
)
def test_a_bad_method_is_refused(config, entries, message):
    with pytest.raises(ConfigError, match=message):
        load_config(config, ["--method", *entries], prog="test")
