"""Console commands are run as a user runs them, but in this process: importing torch and diffusers takes longer than a tiny run."""

import sys

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
