"""Work divided over shards gives what one process gives, to the byte: jobs of their own, and two processes under torchrun."""

import json
from pathlib import Path

import pytest
import torch
from several_processes import torchrun

from benchmarks.main import benchmark_portraits
from portraitkit.faces.portraits import bundled_portraits
from portraitkit.pictures.images import resize, write_image
from preference_data.main import make_preferences

PAIRS = ("embedded", "--count", "5", "--resolution", "64", "--pairs-per-photo", "1", "--split-shares", "0.6", "0.2", "0.2")
METHODS = ("--method", "a=a", "b=b", "--source", "a", "--metrics", "niqe", "brisque", "psnr", "--reference", "b", "--max-failed", "0.5")


@pytest.fixture
def pictures(place) -> Path:
    """Folders a and b: embedded portraits in three sizes, so that there are several batches, and one broken file."""
    for name, gain in (("a", 1.0), ("b", 0.9)):
        (place / name).mkdir()
        for person, pixels in bundled_portraits().items():
            for side in (192, 200, 208):
                write_image(place / name / f"{person}-{side}.png", resize(pixels, (side, side)) * gain)
    (place / "a" / "astronaut-200.png").write_bytes((place / "a" / "astronaut-200.png").read_bytes()[:5000])
    return place


def files(folder: Path) -> dict[str, bytes]:
    """All of a folder but the record of the command and its time."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("environment.json", "report.html"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_jobs_of_their_own_build_what_one_process_builds(command, tmp_path, stopped_at_the_second):
    made = stopped_at_the_second
    out = tmp_path / "shards"
    build = ("build", *PAIRS, "--output-dir", out)
    code, _, err = command(make_preferences, *build, "--shard", "1/2")
    assert code == 130 and "stopped after 2 of 3" in err
    assert command(make_preferences, *build, "--shard", "1/2")[0] == 0 and len(made) == len(set(made)) == 3
    code, _, err = command(make_preferences, *build)
    assert code == 2 and "shard 2/2 is not finished; run the same command with --shard 2/2" in err and err.count("\n") == 1
    code, _, err = command(make_preferences, *build, "--shard", "2/3")
    assert code == 2 and "holds 2 shards, these would be 3" in err and err.count("\n") == 1
    code, _, err = command(make_preferences, *build, "--shard", "2/2", "--seed", "4")
    assert code == 2 and "another --seed" in err and err.count("\n") == 1
    code, _, err = command(make_preferences, *build, "--shard", "2/2")
    assert code == 0 and "the same command without --shard merges" in err and not (out / "metadata.jsonl").exists()
    code, text, _ = command(make_preferences, *build)
    assert code == 0 and "5 pairs (train 3, validation 1, held_out 1)" in text and len(made) == 5
    code, _, err = command(make_preferences, *build, "--shard", "2/2")
    assert code == 2 and "holds a pair set" in err
    assert command(make_preferences, "build", *PAIRS, "--output-dir", tmp_path / "one")[0] == 0
    assert files(out) == files(tmp_path / "one")


def test_photos_are_looked_at_by_all_shards_together(command, tmp_path, monkeypatch):
    """Each photo is opened by one of them only, and all deal out the same persons to the same splits."""
    from preference_data.people import photos as photo_folder

    photos, seen, look = tmp_path / "photos", [], photo_folder._look
    photos.mkdir()
    portraits = bundled_portraits()
    for name, pixels in portraits.items():
        write_image(photos / f"{name}.png", pixels)
    write_image(photos / "grey.png", torch.full_like(next(iter(portraits.values())), 0.5))

    monkeypatch.setattr(photo_folder, "_look", lambda photo, anchor: seen.append(photo.name) or look(photo, anchor))
    build = ("build", photos, "--resolution", "64", "--pairs-per-photo", "1", "--max-bad-share", "0.5", "--output-dir")
    for index in (3, 1, 2):
        assert command(make_preferences, *build, tmp_path / "shards", "--shard", f"{index}/3")[0] == 0
    assert command(make_preferences, *build, tmp_path / "shards")[0] == 0
    assert len(seen) == len(set(seen)) == len(list(photos.iterdir()))
    assert command(make_preferences, *build, tmp_path / "one")[0] == 0
    assert files(tmp_path / "shards") == files(tmp_path / "one")


def test_photos_that_came_later_are_not_lost_in_the_merge(command, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    write_image(photos / "b.png", bundled_portraits()["astronaut"])
    build = ("build", photos, "--resolution", "64", "--pairs-per-photo", "1", "--output-dir", tmp_path / "out")
    assert command(make_preferences, *build, "--shard", "1/1")[0] == 0
    write_image(photos / "c.png", bundled_portraits()["grace_hopper"])
    code, _, err = command(make_preferences, *build)
    assert code == 2 and "shard 1/1 lacks photo-00002" in err and not (tmp_path / "out" / "metadata.jsonl").exists()


def test_jobs_of_their_own_measure_what_one_process_measures(command, pictures):
    run = (*METHODS, "--cache", "cache1", "--output-dir", "shards")
    assert command(benchmark_portraits, *run, "--shard", "2/3")[0] == 0
    code, _, err = command(benchmark_portraits, *run, "--shard", "1/2")
    assert code == 2 and "holds 3 shards, these would be 2" in err and err.count("\n") == 1
    code, _, err = command(benchmark_portraits, *run, "--shard", "1/3", "--limit", "2")
    assert code == 2 and "--limit" in err and err.count("\n") == 1
    code, _, err = command(benchmark_portraits, *run)
    assert code == 2 and "shard 1/3, 3/3 are not finished" in err and not Path("shards/results.json").exists()
    part = Path("shards/shards/1-of-3.jsonl")
    assert command(benchmark_portraits, *run, "--shard", "1/3")[0] == 0
    lines = part.read_bytes().splitlines(keepends=True)
    part.with_name("1-of-3.jsonl.part").write_bytes(lines[0] + lines[1][:30])  # killed in the middle of a line
    part.unlink()
    for shard in ("3/3", "1/3"):
        assert command(benchmark_portraits, *run, "--shard", shard)[0] == 0
    again = part.read_bytes().splitlines(keepends=True)
    assert again[0] == lines[0] and b'"values"' in lines[0]  # what was measured is not measured again
    code, _, err = command(benchmark_portraits, *run)
    assert code == 0 and "0 values computed" in err and not Path("shards/shards").exists()
    assert command(benchmark_portraits, *METHODS, "--cache", "cache2", "--output-dir", "one")[0] == 0
    assert files(Path("shards")) == files(Path("one"))
    assert {"results.json", "rows.csv", "summary.md", "failed.jsonl"} <= files(Path("one")).keys()
    assert len(json.loads(Path("one/results.json").read_text())["failed"]) == 1


@pytest.mark.parametrize("entry", [make_preferences, benchmark_portraits])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shard", "0/2"), "--shard 0/2: must be I/N with I from 1 to N"),
        (("--shard", "two"), "--shard two: must be I/N"),
        (("--shard", "1/2", "--overwrite"), "--overwrite: would delete what other shards have made"),
    ],
)
def test_mistakes_are_one_line(command, tmp_path, entry, options, message):
    first = ("build", "embedded") if entry is make_preferences else ()
    code, _, err = command(entry, *first, "--output-dir", tmp_path / "out", *options)
    assert code == 2 and message in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_archives_are_for_one_process(command, pictures):
    import zipfile

    with zipfile.ZipFile("c.zip", "w") as archive:
        archive.write("a/astronaut-192.png", "astronaut-192.png")
    code, _, err = command(benchmark_portraits, "--method", "c=c.zip", "--output-dir", "out", "--shard", "1/2")
    assert code == 2 and "unpack it and name the folder" in err and not Path("out").exists()


@pytest.mark.slow
def test_two_processes_build_what_one_builds_although_one_is_killed(command, tmp_path):
    """The first try ends soon after the second process is killed; the same command goes on with what both had made."""
    kills = """
import os
import signal

from preference_data import main
from preference_data.commands import build

one = build._one


def killed(row, generators, config):
    if os.environ["RANK"] == "1" and row.id == "person-00003":
        os.kill(os.getpid(), signal.SIGKILL)
    return one(row, generators, config)


build._one = killed
main.make_preferences()
"""
    build = ("build", *PAIRS, "--output-dir", tmp_path / "two")
    done = torchrun(kills, *build, folder=tmp_path)
    assert done.returncode != 0 and "SIGKILL" in done.stderr, done.stderr
    part = tmp_path / "two/shards/2-of-2.jsonl.part"
    before = part.read_bytes()
    assert [json.loads(line)["subject"] for line in before.splitlines()] == ["person-00001"]
    assert not (tmp_path / "two/metadata.jsonl").exists()
    done = torchrun("from preference_data.main import make_preferences; make_preferences()", *build, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("5 pairs") == 1
    assert command(make_preferences, "build", *PAIRS, "--output-dir", tmp_path / "one")[0] == 0
    assert files(tmp_path / "two") == files(tmp_path / "one")


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(command, pictures):
    done = torchrun(
        "from benchmarks.main import benchmark_portraits; benchmark_portraits()",
        *METHODS,
        "--cache",
        "cache1",
        "--output-dir",
        "two",
        folder=pictures,
    )
    assert done.returncode == 0, done.stderr
    assert "two/report.html" in done.stdout and " 0 values computed" in done.stderr
    assert command(benchmark_portraits, *METHODS, "--cache", "cache2", "--output-dir", "one")[0] == 0
    assert files(pictures / "two") == files(pictures / "one")
