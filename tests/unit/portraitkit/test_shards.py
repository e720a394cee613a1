"""Shards: who makes what, one process a shard, what a killed one leaves, and what the merging one refuses."""

import os
import socket
import subprocess

import pytest

from portraitkit.errors import ConfigError, RunFolderError
from portraitkit.runs import locks
from portraitkit.runs.shards import (
    Growing,
    Shard,
    ShardFile,
    check_shard,
    clear_shards,
    create_whole,
    current_shard,
    has_shards,
    merged_rows,
    parse_shard,
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
    assert not has_shards(tmp_path) and not list(tmp_path.iterdir())


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
    with pytest.raises(RunFolderError, match="--seed 1, this one 2"), ShardFile(tmp_path, Shard(1, 2), {"seed": 2}):
        pass
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


def test_the_merging_process_waits_for_the_living_only(tmp_path):
    finish(tmp_path, 0, 2, [])
    assert wait_for_shards(tmp_path, lambda: True) is False
    with pytest.raises(RunFolderError, match="the process of shard 2/2 ended before its share was done"):
        wait_for_shards(tmp_path, lambda: False, lost=1)
    (tmp_path / "shards/2-of-2.lock").write_text("{}")
    with pytest.raises(RunFolderError, match="no sign of life of shard 2/2"):
        wait_for_shards(tmp_path, lambda: False, lost=0.1)
    (tmp_path / "shards/2-of-2.lock").unlink()
    finish(tmp_path, 1, 2, [])
    assert wait_for_shards(tmp_path, lambda: True) is True


def test_a_folder_appears_with_what_must_be_in_it(tmp_path):
    create_whole(tmp_path / "a" / "run", {"config.json": "1"})
    create_whole(tmp_path / "a" / "run", {"config.json": "2"})
    assert [(path.name, path.read_text()) for path in (tmp_path / "a" / "run").iterdir()] == [("config.json", "1")]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["run"]
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="cannot be made a folder"):
        create_whole(tmp_path / "file", {})


def test_rows_of_all_processes_are_read_as_they_are_written(tmp_path):
    rows = Growing(tmp_path, "faces")
    assert list(rows.new()) == []
    (tmp_path / "shards").mkdir()
    rows.own(Shard(0, 2)).write_text('{"a": 1}\n{"a": ')
    assert list(rows.new()) == [{"a": 1}] and list(rows.new()) == []
    rows.own(Shard(0, 2)).write_text('{"a": 1}\n{"a": 2}\nbroken\n')
    rows.own(Shard(1, 2)).write_text('{"a": 3}\n[]\n')
    assert list(rows.new()) == [{"a": 2}, {"a": 3}]
