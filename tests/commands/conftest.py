"""Console commands are run as a user runs them, but in this process: importing torch and diffusers takes longer than a tiny run."""

import os
import signal
import sys
from pathlib import Path

import pytest


@pytest.fixture
def command(monkeypatch, capsys):
    """A function (entry point, arguments) -> (exit code, stdout, stderr)."""

    def call(entry, *argv) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [entry.__name__.replace("_", "-"), *map(str, argv)])
        with pytest.raises(SystemExit) as stopped:
            entry()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tiny random Qwen2.5-VL."""
    from tiny_vlm import write_tiny_vlm

    return write_tiny_vlm(tmp_path_factory.mktemp("model"))


@pytest.fixture
def stopped_at_the_second(monkeypatch):
    """The rows that `make-preferences build` has worked on, in order; while it is at the second one, Ctrl-C comes."""
    from preference_data.commands import build

    made, one = [], build._one

    def stops(row, generators, config):
        made.append(row.id)
        if len(made) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return one(row, generators, config)

    monkeypatch.setattr(build, "_one", stops)
    return made


@pytest.fixture
def interrupt_after():
    """A function (patch, stage, step) after which Ctrl-C comes at the end of that update of that stage of `align-vlm`."""
    from portraitkit.vlm.trainers import Follow

    def set_up(patch, stage, step):
        ended = Follow.on_step_end

        def on_step_end(self, args, state, control, **given):
            if (self.stage, state.global_step) == (stage, step):
                signal.raise_signal(signal.SIGINT)
            ended(self, args, state, control, **given)

        patch.setattr(Follow, "on_step_end", on_step_end)

    return set_up


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """An empty working directory, with home and metric weights in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PORTRAITKIT_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path
