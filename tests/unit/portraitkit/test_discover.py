import pickle
from pathlib import Path

import pytest

from portraitkit.discover import load_object
from portraitkit.errors import ConfigError

CODE = """
from dataclasses import dataclass

@dataclass
class Metric:
    name: str

METRIC = Metric("mine")
"""


@pytest.fixture
def metric_file(tmp_path: Path) -> Path:
    path = tmp_path / "json.py"  # a name that a library module has too
    path.write_text(CODE)
    return path


def test_a_file_of_the_users_own(metric_file: Path):
    metric = load_object(f"{metric_file}:METRIC")
    assert metric.name == "mine"
    assert pickle.loads(pickle.dumps(metric)) == metric
    assert load_object(f"{metric_file}:METRIC") is metric
    metric_file.write_text(CODE.replace("mine", "changed"))
    assert load_object(f"{metric_file}:METRIC").name == "changed"


def test_a_relative_file(metric_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(metric_file.parent)
    assert load_object("json.py:METRIC").name == "mine"


def test_an_installed_module():
    assert load_object("portraitkit.errors:ConfigError") is ConfigError


@pytest.mark.parametrize("where", ["METRIC", "", ":METRIC", "a.py:", "folder/file:METRIC", ".errors:ConfigError", "a..b:C"])
def test_the_form_is_explained(where: str):
    with pytest.raises(ConfigError, match=r"must be my_file\.py:NAME or package\.module:NAME"):
        load_object(where)


def test_what_is_missing_is_named_with_the_nearest(metric_file: Path):
    with pytest.raises(ConfigError, match=r"has no 'METRICS'; did you mean 'METRIC'\?"):
        load_object(f"{metric_file}:METRICS")
    with pytest.raises(ConfigError, match=r"jsn\.py: no such file, looked in .*; did you mean 'json\.py'\?"):
        load_object(f"{metric_file.with_name('jsn.py')}:METRIC")
    with pytest.raises(ConfigError, match=r"portraitkit\.error: no such module; did you mean 'errors'\?"):
        load_object("portraitkit.error:ConfigError")
    with pytest.raises(ConfigError, match=r"no_such_package\.x: no such module"):
        load_object("no_such_package.x:Y")


def test_errors_inside_the_users_file_keep_their_traceback(metric_file: Path):
    for code, error in [("import no_such_library", ModuleNotFoundError), ("1 / 0", ZeroDivisionError)]:
        metric_file.write_text(code)
        for _ in range(2):
            with pytest.raises(error):
                load_object(f"{metric_file}:METRIC")
