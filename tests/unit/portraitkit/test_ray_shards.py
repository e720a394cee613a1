"""Shards as rows of a Ray data set. Ray itself is an extra; where it is installed, two shards are run on it."""

import sys

import pytest

from portraitkit.errors import ConfigError, UserError
from portraitkit.ray_shards import run_on_ray, run_shard

SCRIPT = """
import sys
from pathlib import Path

shard = sys.argv[sys.argv.index("--shard") + 1] if "--shard" in sys.argv else "merged"
Path(shard.replace("/", "-of-")).write_text(" ".join(sorted(path.name for path in Path().glob("*-of-*"))))
sys.exit("error: not this one" if shard == sys.argv[1] else 0)
"""


@pytest.fixture
def script(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text(SCRIPT)
    return [sys.executable, "script.py"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "usage"),
        (["8"], "usage"),
        (["8", "--"], "usage"),
        (["--gpus", "1", "--", "x"], "usage"),
        (["8", "--gpus", "--", "x"], "usage"),
        (["8", "--gpus", "many", "--", "x"], "--gpus many: must be"),
        (["8", "--memory", "1", "--", "x"], "--memory 1: must be"),
        (["0", "--", "x"], "must be I/N"),
        (["8", "--", "x", "--shard", "1/8"], "leave it out"),
    ],
)
def test_mistakes_are_told(options, message):
    with pytest.raises(ConfigError, match=message):
        run_on_ray(options)


def test_a_shard_is_a_process_of_its_own(script, tmp_path):
    done = run_shard({"command": [*script, "2/2", "--shard", "1/2"], "folder": str(tmp_path)})
    assert done == {"shard": "1/2", "code": 0, "said": ""} and (tmp_path / "1-of-2").is_file()
    done = run_shard({"command": [*script, "2/2", "--shard", "2/2"], "folder": str(tmp_path)})
    assert done == {"shard": "2/2", "code": 1, "said": "error: not this one\n"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_runs_all_shards_and_one_process_merges(script, tmp_path):
    pytest.importorskip("ray.data")
    assert run_on_ray(["2", "--cpus", "0.5", "--", *script, "none"]) == 0
    assert (tmp_path / "merged").read_text() == "1-of-2 2-of-2"
    (tmp_path / "merged").unlink()
    with pytest.raises(UserError, match=r"1 of 2 shards failed: 2/2 \(exit code 1\): \['error: not this one'\]"):
        run_on_ray(["2", "--cpus", "0.5", "--", *script, "2/2"])
    assert not (tmp_path / "merged").exists()
