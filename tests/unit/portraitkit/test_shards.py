"""Shards: who makes what, one process a shard, what a killed one leaves, and what the merging one refuses."""

import os
import socket
import subprocess

import pytest

from portraitkit.errors import ConfigError, RunFolderError
from portraitkit.runs import locks, shards
from portraitkit.runs.shards import (
    Growing,
    Shard,
    ShardFile,
    check_shard,
    clear_shards,
    current_shard,
    merged_rows,
    parse_shard,
    shard_count,
    wait_for_shards,
)

OPTIONS = {"seed": 1}


def finish(folder, index, count, rows):
    with ShardFile(folder, Shard(index, count), OPTIONS) as file:
        for row in rows:
            file.append(row)
        file.finish()


@pytest.mark.parametrize("text", ["", "2", "0/2", "3/2", "-1/2", "a/b", "1/2/3", " 1/2", "1/0", "1/99999"])
def test_a_shard_is_one_of_so_many(text):
    with pytest.raises(ConfigError, match="must be I/N with I from 1 to N"):
        parse_shard(text)
    assert str(parse_shard("2/8")) == "2/8" and parse_shard("2/16").name == "02-of-16"


def test_the_shares_are_everything_once():
    rows = list(range(11))
    parts = [Shard(index, 3).share(rows) for index in range(3)]
    assert sorted(sum(parts, [])) == rows and max(map(len, parts)) - min(map(len, parts)) <= 1
    for index, part in enumerate(parts):
        order = Shard(index, 3).order(rows)
        assert order[: len(part)] == part and sorted(order) == rows
    assert [Shard(index, 3).order(rows)[-1] for index in range(3)] == [2, 0, 1]  # another's first is what is stolen last


def test_options_that_would_harm_other_shards(monkeypatch):
    check_shard("1/2", False)
    check_shard(None, True)
    with pytest.raises(ConfigError, match="--overwrite: would delete"):
        check_shard("1/2", True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert current_shard(None) is None  # some clusters set it for every job
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigError, match="--overwrite: would delete"):
        check_shard(None, True)
    with pytest.raises(ConfigError, match="divide the work by themselves"):
        check_shard("1/2", False)


def test_a_shard_goes_on_after_a_line_that_was_cut(tmp_path):
    with ShardFile(tmp_path, Shard(0, 2), OPTIONS) as file:
        file.append({"row": 0})
        assert file.rows == [] and not file.finished
    with (tmp_path / "shards/1-of-2.jsonl.part").open("ab") as part:
        part.write(b'{"row": 2, "pa')
    with ShardFile(tmp_path, Shard(0, 2), OPTIONS) as file:
        assert file.rows == [{"row": 0}]
        file.append({"row": 2})
        file.finish()
        assert file.finished
    finish(tmp_path, 1, 2, [{"row": 1}])
    assert merged_rows(tmp_path) == [[{"row": 0}, {"row": 2}], [{"row": 1}]]
    assert not list((tmp_path / "shards").glob("*.lock")) and not list((tmp_path / "shards").glob(".*"))
    clear_shards(tmp_path)
    assert shard_count(tmp_path) == 0 and not list(tmp_path.iterdir())


def test_shards_that_are_not_there_are_named(tmp_path):
    finish(tmp_path, 1, 4, [])
    with ShardFile(tmp_path, Shard(3, 4), OPTIONS):
        pass
    with pytest.raises(RunFolderError, match=r"shard 1/4, 3/4, 4/4 are not finished; run the same command with --shard 1/4"):
        merged_rows(tmp_path)


def test_another_number_or_other_options_are_refused(tmp_path):
    finish(tmp_path, 0, 2, [])
    with pytest.raises(RunFolderError, match="holds 2 shards, these would be 3; go on with 2"):
        finish(tmp_path, 0, 3, [])
    with pytest.raises(RunFolderError, match=r"another --seed \(1, now 2\)"), ShardFile(tmp_path, Shard(1, 2), {"seed": 2}):
        pass
    assert shard_count(tmp_path, OPTIONS) == 2
    with pytest.raises(RunFolderError, match=r"another --seed \(1, now 2\)"):
        shard_count(tmp_path, {"seed": 2})
    (tmp_path / "shards/options.json").write_text("[]")
    with pytest.raises(RunFolderError, match="remove .*shards to start anew"):
        finish(tmp_path, 1, 2, [])
    with pytest.raises(RunFolderError, match="remove .*shards to start anew"):
        merged_rows(tmp_path)


def marker(pid, host):
    """A lock as a process leaves it."""
    return f"filelock/2\npid={pid}\nhost={host}\nmode=lease\ntoken=0\nduration={locks.LOST!r}\n"


def test_one_process_a_shard_until_it_is_gone(tmp_path, capsys):
    finish(tmp_path, 1, 2, [])
    lock = tmp_path / "shards/1-of-2.lock"
    with subprocess.Popen(["sleep", "60"]) as holder:
        lock.write_text(marker(holder.pid, socket.gethostname()))
        with pytest.raises(RunFolderError, match=f"process {holder.pid} on .* is making this shard"):
            finish(tmp_path, 0, 2, [])
        holder.kill()
    finish(tmp_path, 0, 2, [])
    assert f"took over from process {holder.pid}" in capsys.readouterr().err and not lock.exists()


def test_a_process_on_another_machine_counts_while_it_shows_life(tmp_path, monkeypatch):
    finish(tmp_path, 1, 2, [])
    lock = tmp_path / "shards/1-of-2.lock"
    monkeypatch.setattr(locks, "LOST", 60.0)
    lock.write_text(marker(1, "elsewhere"))
    pauses = []

    def alive(seconds):
        pauses.append(seconds)
        os.utime(lock, (len(pauses), len(pauses)))

    monkeypatch.setattr(locks.time, "sleep", alive)
    with pytest.raises(RunFolderError, match="process 1 on elsewhere is making this shard"):
        finish(tmp_path, 0, 2, [])
    monkeypatch.undo()
    monkeypatch.setattr(locks, "LOST", 1.0)
    monkeypatch.setattr(locks, "BEAT", 0.1)
    lock.write_text(marker(1, "elsewhere"))
    finish(tmp_path, 0, 2, [])


def test_the_merging_process_waits_until_all_are_done(tmp_path, monkeypatch):
    finish(tmp_path, 0, 2, [])
    assert wait_for_shards(tmp_path, lambda: True) is False
    monkeypatch.setattr(shards.time, "sleep", lambda seconds: finish(tmp_path, 1, 2, []))
    assert wait_for_shards(tmp_path, lambda: False) is True and wait_for_shards(tmp_path, lambda: True) is True


def test_work_that_begins_anew_drops_what_was_made_with_other_options(tmp_path):
    finish(tmp_path, 0, 2, [{"row": 1}])
    with ShardFile(tmp_path, Shard(0, 1), {"seed": 2}, anew=True) as file:
        assert file.rows == [] and not file.finished and shard_count(tmp_path, {"seed": 2}) == 1


def test_a_launched_process_is_a_shard_without_talking_to_the_others(monkeypatch):
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert current_shard(None) == Shard(3, 4, True, 1) and not Shard(3, 4, True, 1).merges and Shard(0, 4, True).merges


def test_rows_of_all_processes_are_read_as_they_are_written(tmp_path):
    own, other = tmp_path / "faces-[1].jsonl", tmp_path / "faces-[2].jsonl"
    rows, alone = Growing(own, "faces-*.jsonl"), Growing(other)
    assert list(rows.new()) == []
    own.write_text('{"a": 1}\n{"a": ')
    assert list(rows.new()) == [{"a": 1}] and list(rows.new()) == []
    own.write_text('{"a": 1}\n{"a": 2}\nbroken\n')
    other.write_text('{"a": 3}\n[]\n')
    assert list(rows.new()) == [{"a": 2}, {"a": 3}]
    rows.append({"a": 4})
    assert list(rows.new()) == [{"a": 4}] and list(alone.new()) == [{"a": 3}]
