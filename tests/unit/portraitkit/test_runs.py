"""A run folder holds one run, written by one process; what it records can be read back."""

import itertools
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest
from patience import wait_until

from portraitkit.errors import CheckpointError, ConfigError, RunFolderError
from portraitkit.runs import locks
from portraitkit.runs.folder import RunFolder, environment

CONFIG = {"output_dir": "runs/a", "seed": 3, "learning_rate": 1e-4, "rewards": ["identity", "skin"], "lam_max": math.nan}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "a"


def start(path, config=CONFIG, **options):
    return RunFolder.open(
        path,
        config,
        command=["/usr/bin/align-retoucher", "--seed", "3"],
        seed=3,
        free=("output_dir", "overwrite", "checkpointing_steps"),
        **options,
    )


def finished(path, *steps):
    with start(path) as run:
        for step in steps:
            run.log(step, reward=step / 10)
    return path


def strict(text):
    """JSON as other programs read it: NaN and Infinity are refused."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def metrics(path):
    return [strict(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def contents(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_new_run_records_its_configuration_and_what_it_runs_on(path):
    with start(path) as run:
        run.write_json("summary.json", {"gain": math.inf, 1: (0.5, None)})
        assert (path / ".lock").is_file()
    assert strict((path / "config.json").read_text()) == {**CONFIG, "lam_max": None}
    assert strict((path / "summary.json").read_text()) == {"gain": None, "1": [0.5, None]}
    record = strict((path / "environment.json").read_text())
    assert record["command"] == ["align-retoucher", "--seed", "3"] and record["seed"] == 3
    assert record["versions"]["torch"] and record["versions"]["numpy"]
    assert record["cores"] == os.cpu_count() and record["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {file.name for file in path.iterdir()} == {"config.json", "environment.json", "metrics.jsonl", "summary.json"}


def test_an_environment_without_git_or_command_is_still_one(monkeypatch):
    monkeypatch.setenv("PATH", "")
    record = environment([], 0)
    assert record["revision"] is None and record["command"] == []


def test_metrics_are_there_at_once_and_valid_json_whatever_their_values(path):
    with start(path) as run:
        run.log(1, kind="train", reward=0.5, kl=math.nan, gap=-math.inf, ci95=[0.1, math.nan], parts={"a": math.inf}, count=3, on=True)
        (line,) = metrics(path)
    assert line.pop("time") > 1.6e9
    assert line == {
        "step": 1,
        "kind": "train",
        "reward": 0.5,
        "kl": None,
        "gap": None,
        "ci95": [0.1, None],
        "parts": {"a": None},
        "count": 3,
        "on": True,
    }


def test_a_folder_of_another_run_is_refused_and_untouched(path):
    before = contents(finished(path, 1, 2))
    with pytest.raises(RunFolderError, match=r"holds another run; use --overwrite, --resume-from-checkpoint latest"):
        start(path)
    assert contents(path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_files_is_refused_even_for_overwriting(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match="holds files that are no run"):
        start(tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == {(tmp_path / "thesis.tex").relative_to(tmp_path): b"years of work"}


def test_a_file_cannot_be_a_run_folder(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunFolderError, match="cannot be a run folder"):
            start(place)


def test_overwriting_leaves_nothing_of_the_old_run_and_follows_no_links(path, tmp_path):
    finished(path, 1)
    (path / "checkpoint-1").mkdir()
    (path / "checkpoint-1" / "state.json").touch()
    elsewhere = tmp_path / "photos"
    elsewhere.mkdir()
    (elsewhere / "a.png").touch()
    (path / "photos").symlink_to(elsewhere)
    with start(path, {**CONFIG, "seed": 4}, overwrite=True) as run:
        run.log(9)
    assert {file.name for file in path.iterdir()} == {"config.json", "environment.json", "metrics.jsonl"}
    assert [line["step"] for line in metrics(path)] == [9]
    assert (elsewhere / "a.png").is_file()


def test_a_mistyped_tracker_costs_no_old_run(path):
    before = contents(finished(path, 1))
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        start(path, overwrite=True, report_to=["tensorbord"])
    assert contents(path) == before


def test_resuming_needs_a_run(path):
    with pytest.raises(CheckpointError, match="holds no run to resume"):
        start(path, resume="latest")
    assert not path.exists()


def test_resuming_goes_on_in_the_same_metrics(path):
    finished(path, 1, 2)
    with start(path, resume="latest") as run:
        run.log(3)
    assert [line["step"] for line in metrics(path)] == [1, 2, 3]


def test_resuming_with_a_changed_configuration_is_refused_by_name(path):
    before = contents(finished(path, 1))
    changed = {**CONFIG, "learning_rate": 3e-4, "eta": 0.7, "output_dir": "elsewhere", "overwrite": True, "checkpointing_steps": 5}
    with pytest.raises(RunFolderError) as caught:
        start(path, changed, resume="latest")
    message = str(caught.value)
    assert "learning_rate 0.0001 -> 0.0003" in message and "eta None -> 0.7" in message and "--allow-changed" in message
    assert all(name not in message for name in ("output_dir", "overwrite", "checkpointing_steps", "lam_max", "rewards", "seed"))
    assert contents(path) == before
    with start(path, changed, resume="latest", allow_changed=True):
        assert strict((path / "config.json").read_text())["learning_rate"] == 3e-4


def test_a_setting_left_out_now_counts_as_changed(path):
    finished(path)
    with pytest.raises(RunFolderError, match=r"rewards \['identity', 'skin'\] -> None"):
        start(path, {key: value for key, value in CONFIG.items() if key != "rewards"}, resume="latest")


def test_tuples_and_values_that_are_not_finite_are_no_change(path):
    finished(path)
    with start(path, {**CONFIG, "rewards": ("identity", "skin"), "lam_max": math.inf}, resume="latest"):
        pass


def test_metrics_after_the_checkpoint_are_dropped(path):
    finished(path, 0, 1, 2, 2, 3, 4)
    for name in (".summary.12-34.md", ".mine", "a.12-34.md"):
        (path / name).touch()
    with start(path, resume="latest") as run:
        assert {".mine", "a.12-34.md"} == {item.name for item in path.iterdir() if item.name.endswith(("mine", ".md"))}  # half a file went
        run.truncate_metrics(2)
        run.log(3, reward=9.0)
    assert [line["step"] for line in metrics(path)] == [0, 1, 2, 2, 3]
    assert metrics(path)[-1]["reward"] == 9.0


CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate"}


def killed(work, path, moment):
    """Whether SIGKILL came at this change of a folder, or of something in it, while a process of its own was at the work."""
    process = os.fork()
    if process == 0:
        try:
            changes = itertools.count(1)

            def watch(event, given):
                if event in CHANGES and str(given[0]).startswith(str(path)) and next(changes) == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(watch)
            work()
        finally:
            os._exit(0)
    return os.waitpid(process, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_kill_at_any_moment_of_a_start_leaves_a_folder_to_start_in(path, monkeypatch, overwrite):
    """Files of a run that had not begun were taken for somebody's, and refused, even for overwriting."""
    monkeypatch.setattr("portraitkit.runs.folder.environment", lambda *_: {})
    monkeypatch.setattr("portraitkit.runs.locks.Lock.take", lambda _: None)
    moment = 0
    moment = 0
    for moment in range(1, 99):
        shutil.rmtree(path, ignore_errors=True)
        if overwrite:
            (finished(path, 1, 2) / "checkpoint-1").mkdir()
        if not killed(lambda: start(path, overwrite=overwrite), path, moment):
            break
        if (path / "config.json").is_file() and not overwrite:
            with pytest.raises(RunFolderError, match="holds another run; use --overwrite"):
                start(path)
        with start(path, overwrite=overwrite or (path / "config.json").is_file()) as run:
            run.log(5)
        assert contents(path).keys() == {run.path.relative_to(path) / name for name in ("config.json", "environment.json", "metrics.jsonl")}
    assert moment > 8


@pytest.mark.parametrize("torn", [b'{"step": 2, "rew', b'{"step": 2', b"{", b"\0\0\0\0", b'{"kind": "\xc3', b"\n"])
def test_a_last_line_that_a_kill_left_unfinished_is_dropped(path, torn):
    with (finished(path, 1, 2) / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    with start(path, resume="latest") as run:
        run.truncate_metrics(2)
        run.log(3)
    assert [line["step"] for line in metrics(path)] == [1, 2, 3]


ANOTHER = """
import sys
from pathlib import Path
from portraitkit.errors import RunFolderError
from portraitkit.runs.folder import RunFolder
try:
    RunFolder.open(Path(sys.argv[1]), {}, command=[], seed=0, overwrite=True)
except RunFolderError as error:
    print(error)
"""


def test_two_runs_cannot_write_the_same_folder(path):
    with start(path) as run:
        run.log(1)
        other = subprocess.run([sys.executable, "-c", ANOTHER, path], capture_output=True, text=True, timeout=60)
        assert f"process {os.getpid()} on {socket.gethostname()} is writing it" in other.stdout, other.stderr
        with pytest.raises(RunFolderError, match="is writing it"):
            start(path, resume="latest")
        run.log(2)
    assert [line["step"] for line in metrics(path)] == [1, 2]
    with start(path, resume="latest"):
        pass


def marker(pid, host):
    """A lock as a process leaves it."""
    return f"filelock/2\npid={pid}\nhost={host}\nmode=lease\ntoken=0\nduration={locks.LOST!r}\n"


def test_the_lock_of_a_process_that_is_gone_is_taken_over(path, capsys):
    finished(path, 1)
    with subprocess.Popen(["sleep", "60"]) as holder:
        (path / ".lock").write_text(marker(holder.pid, socket.gethostname()))
        with pytest.raises(RunFolderError, match=f"process {holder.pid} "):
            start(path, resume="latest")
        holder.kill()
    with start(path, resume="latest"):
        assert f"pid={os.getpid()}\n" in (path / ".lock").read_text()
    assert f"took over from process {holder.pid}" in capsys.readouterr().err


def left_by_another_machine(path):
    finished(path, 1)
    (path / ".lock").write_text(marker(999_999_999, "elsewhere"))


def test_a_run_whose_machine_was_lost_goes_on_elsewhere(path, capsys, monkeypatch):
    monkeypatch.setattr(locks, "LOST", 1.0)
    monkeypatch.setattr(locks, "BEAT", 0.1)
    left_by_another_machine(path)
    with start(path, resume="latest"):
        assert f"pid={os.getpid()}\n" in (path / ".lock").read_text()
    assert "took over from process 999999999 on elsewhere" in capsys.readouterr().err and not (path / ".lock").exists()


def test_a_run_on_another_machine_counts_while_it_shows_life(path, monkeypatch):
    left_by_another_machine(path)
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: os.utime(path / ".lock"))
    with pytest.raises(RunFolderError, match=r"process 999999999 on elsewhere is writing it; wait, or remove .*\.lock"):
        start(path, resume="latest")
    assert "host=elsewhere\n" in (path / ".lock").read_text()


def test_a_run_shows_life_and_leaves_a_lock_that_another_has_taken(path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.01)
    with start(path):
        os.utime(path / ".lock", (1, 1))
        wait_until(lambda: (path / ".lock").stat().st_mtime > 1, "a sign of life")
        (path / ".lock").unlink()
        (path / ".lock").write_text(marker(1, "elsewhere"))
    assert (path / ".lock").is_file()


def test_a_run_killed_before_its_first_file_leaves_a_folder_to_use(path):
    path.mkdir(parents=True)
    (path / ".lock").write_text(marker(999_999_999, socket.gethostname()))
    with start(path) as run:
        run.log(1)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_fails_before_its_first_result_leaves_no_folder(path, overwrite):
    if overwrite:
        finished(path, 1)
    with pytest.raises(ZeroDivisionError), start(path, overwrite=overwrite) as run:
        (run.path / "unpacked").mkdir()
        raise ZeroDivisionError
    assert not path.exists() and path.parent.exists()
    with pytest.raises(KeyboardInterrupt), start(path) as run:
        (run.path / "image.png").touch()
        raise KeyboardInterrupt
    assert (path / "image.png").exists(), "something was made"
    with pytest.raises(ZeroDivisionError), start(path, resume="latest") as run:
        raise ZeroDivisionError
    assert (path / "config.json").exists()


def test_the_folder_is_free_again_after_a_failure(path):
    with pytest.raises(ZeroDivisionError), start(path) as run:
        run.log(1, reward=0.5)
        raise ZeroDivisionError
    with pytest.raises(RunFolderError, match="another configuration"):
        start(path, {}, resume="latest")
    with start(path, resume="latest"):
        pass


def test_trackers_get_the_numbers_and_are_finished(path):
    class Tracker:
        seen, done = [], False

        def log(self, values, step):
            self.seen.append((step, values))

        def finish(self):
            self.done = True

    tracker = Tracker()
    with start(path) as run:
        run.trackers.append(tracker)
        run.log(4, kind="train", reward=0.5, count=2, ci95=[0, 1])
        assert not tracker.done
    assert tracker.seen == [(4, {"reward": 0.5, "count": 2})] and tracker.done


def test_a_disk_that_takes_no_more_is_one_line(path):
    with start(path) as run:
        (path / "summary.json").mkdir()
        with pytest.raises(RunFolderError, match=r"summary\.json: could not be written"):
            run.write_json("summary.json", {})
        assert not list(path.glob(".summary*"))
