"""Commands that go on by themselves know their own folders."""

import json

import pytest

from portraitkit.errors import RunFolderError
from portraitkit.runs.folder import Maker, may_resume, start_or_go_on

MAKER = Maker("make-it", "looks", "a set made", ("count",))


def test_work_may_go_on_with_the_same_options_only(tmp_path):
    def may(config, **options):
        return may_resume(tmp_path, config, MAKER, **options)

    config = {"looks": 2, "count": 3, "seed": 0}
    assert not may(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert may(config) and may(config | {"count": 9}) and not may(config, overwrite=True)
    with pytest.raises(RunFolderError, match=r"holds a set made with other options \(seed 0 -> 1\)"):
        may(config | {"seed": 1})
    for other in ("{", "[]", '{"other": 1}'):
        (tmp_path / "config.json").write_text(other)
        with pytest.raises(RunFolderError, match="that make-it did not make"):
            may(config, overwrite=True)


def test_a_maker_starts_goes_on_and_replaces(tmp_path):
    made = tmp_path / "made"

    def opened(config, **options):
        return start_or_go_on(made, config, MAKER, command=["make-it"], seed=0, **options)

    with opened({"looks": 2, "count": 3}) as run:
        (run.path / "done.txt").touch()
    with opened({"looks": 2, "count": 9}) as run:
        assert (run.path / "done.txt").is_file()
    assert json.loads((made / "config.json").read_text())["count"] == 9
    with pytest.raises(RunFolderError, match="looks 2 -> 1"):
        opened({"looks": 1, "count": 9})
    with opened({"looks": 1, "count": 9}, overwrite=True) as run:
        assert not (run.path / "done.txt").exists()
