"""Trackers: tensorboard writes events that its own reader reads; mistakes are one line."""

from importlib.util import find_spec

import pytest

from portraitkit.errors import ConfigError
from portraitkit.runs import folder
from portraitkit.runs.folder import TRACKERS, RunFolder, open_trackers


def test_no_trackers_need_no_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "find_spec", lambda name: None)
    assert open_trackers([], tmp_path, {}) == []


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_gets_every_number_of_a_run(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = {"seed": 1, "learning_rate": 1e-4, "rewards": ["identity", "skin"], "model": None, "dpg": True}
    with RunFolder.open(tmp_path / "run", config, command=[], seed=1, report_to=["tensorboard"]) as run:
        for step in (1, 5):
            run.log(step, kind="train", reward=step / 4, loss=-2)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward")] == [(1, 0.25), (5, 1.25)]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, -2.0), (5, -2.0)]
    (settings,) = (tmp_path / "run" / "tensorboard").rglob("hparams.yml")
    assert "identity" in settings.read_text() and "learning_rate: 0.0001" in settings.read_text()


@pytest.mark.parametrize(("name", "called"), [("wandb", "WandBTracker"), ("trackio", "TrackioTracker")])
def test_the_run_is_named_after_its_folder(tmp_path, monkeypatch, name, called):
    from accelerate import tracking

    class Recorder:
        def __init__(self, run_name, **options):
            self.project, self.options, self.calls = run_name, options, []

        def start(self):
            self.calls.append("start")

        def store_init_configuration(self, values):
            self.calls.append(values)

    monkeypatch.setattr(tracking, called, Recorder)
    monkeypatch.setattr(folder, "find_spec", lambda name: object())
    (tracker,) = open_trackers([name], tmp_path / "first try", {"seed": 1, "rewards": ["identity"], "model": None})
    assert (tracker.project, tracker.options["name"]) == ("portraitkit", "first try")
    assert tracker.calls == ["start", {"seed": 1, "rewards": "['identity']", "model": "None"}]


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_one_line_with_the_remedy(tmp_path, monkeypatch, name):
    monkeypatch.setattr(folder, "find_spec", lambda wanted: None if wanted == name else object())
    with pytest.raises(ConfigError) as caught:
        open_trackers([name], tmp_path, {})
    assert str(caught.value) == f"--report-to {name}: the package is not installed; pip install 'portraitkit[trackers]'"


def test_an_unknown_name_gets_a_suggestion_and_starts_nothing(tmp_path):
    with pytest.raises(ConfigError, match=r"^--report-to wanb: unknown tracker; did you mean 'wandb'\?; use wandb, trackio, tensorboard$"):
        open_trackers(["tensorboard", "wanb"], tmp_path, {})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="unknown tracker; use wandb"):
        open_trackers(["mlflow"], tmp_path, {})
