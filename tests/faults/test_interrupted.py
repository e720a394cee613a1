"""Ctrl-C at any moment of a command, and two commands at one folder: one line, nothing half-written, and the same command works again."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.blind_test import make
from benchmarks.blind_test.options import MakeConfig
from benchmarks.blind_test.study import read_study
from portraitkit.errors import RunFolderError

ROOT = Path(__file__).parents[2]
UNITS = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)
COMMANDS = {
    "emotion": ("preference_data.main:make_preferences", "emotion disfa disfa --output-dir out"),
    "blind-test": ("benchmarks.blind_test.commands:blind_test", "make --method ours=ours theirs=theirs --output-dir out"),
    "score": ("policies.vlm.main:score_completions", "answers.jsonl --task area --metrics out/metrics.json"),
}


@pytest.fixture
def place(tmp_path):
    """Inputs of the commands: pictures, labels of faces, answers."""
    for name, level in (("ours", 90), ("theirs", 150)):
        (tmp_path / name).mkdir()
        for number in range(8):
            Image.effect_noise((256, 256), level + number).convert("RGB").save(tmp_path / name / f"{number}.png")
    (tmp_path / "disfa/ActionUnit_Labels/SN001").mkdir(parents=True)
    for unit in UNITS:
        (tmp_path / f"disfa/ActionUnit_Labels/SN001/SN001_au{unit}.txt").write_text("".join(f"{frame},0\n" for frame in range(1, 40)))
    (tmp_path / "disfa/Images/SN001").mkdir(parents=True)
    for frame in range(1, 40):
        Image.new("RGB", (16, 16), (frame, 90, 90)).save(tmp_path / f"disfa/Images/SN001/{frame}.jpg")
    (tmp_path / "answers.jsonl").write_text('{"completion": "<think>x</think><answer>3.00</answer>", "area": 3}\n' * 3000)
    (tmp_path / "out").mkdir()
    return tmp_path


def start(name, place):
    module, _, entry = COMMANDS[name][0].partition(":")
    code = f"import sys; sys.argv = {[name, *COMMANDS[name][1].split()]!r}; from {module} import {entry}; {entry}()"
    options = {"cwd": place, "env": os.environ | {"PYTHONPATH": str(ROOT)}, "text": True, "start_new_session": True}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options)


def made(place):
    return {path.name for path in (place / "out").rglob("*") if path.suffix in (".json", ".jsonl", ".html")}


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_at_any_moment(name, place):
    """As a terminal sends it, to the whole group; before Python has begun and after the command's last word the process ends silently."""
    began = time.monotonic()
    with start(name, place) as process:
        said = process.stderr.read()
    seconds, whole, moments = time.monotonic() - began, made(place), random.Random(name)
    assert process.returncode == 0 and whole, said
    for _ in range(2):
        for path in sorted((place / "out").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        with start(name, place) as process:
            time.sleep(0.25 + moments.random() * (seconds - 0.25))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
            said = process.stderr.read()
        assert process.returncode in (0, 130, -signal.SIGINT) and "Traceback" not in said, said
        if process.returncode == 130:
            assert said.splitlines()[-1].startswith("interrupted"), said
        assert not [path for path in place.rglob(".*") if path.name != ".lock"], "a temporary file stayed"
        if made(place) != whole:
            assert process.returncode != 0
            with start(name, place) as process:
                said = process.stderr.read()
            assert process.returncode == 0 and made(place) == whole, said


def test_a_study_that_another_process_made_meanwhile_is_not_replaced(place, monkeypatch):
    """Both had found no study at their beginning, and the later one replaced the earlier one's, votes and all."""
    config = MakeConfig.of(method=(f"ours={place / 'ours'}", f"theirs={place / 'theirs'}"), output_dir=place / "out")
    write, studies = make._write_texts, []

    def slowly(*given):
        write(*given)
        if not studies:
            studies.append(None)
            with monkeypatch.context() as other:
                other.setattr("os.getpid", lambda: 1)
                make.make_study(config)
            studies[0] = read_study(place / "out")

    monkeypatch.setattr(make, "_write_texts", slowly)
    with pytest.raises(RunFolderError, match="holds another study"):
        make.make_study(config)
    assert read_study(place / "out") == studies[0]
    assert [path.name for path in place.iterdir() if path.name.startswith(".")] == []
