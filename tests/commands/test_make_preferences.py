"""`make-preferences` as a user runs it: build, lint, annotate, merge, export; every mistake is one line and exit code 2."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request

import pytest
from patience import LONGEST

from portraitkit.faces.portraits import bundled_portraits
from portraitkit.pictures.images import write_image
from portraitkit.runs.locks import WRITING, only_writer
from preference_data.commands import build as build_module
from preference_data.generators import NEAR
from preference_data.main import make_preferences
from preference_data.pair_set import QUARANTINE, read_pairs

EMBEDDED = ("build", "embedded", "--count", "4", "--resolution", "64", "--pairs-per-photo", "1", "--split-shares", "0.5", "0.25", "0.25")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    portraits = bundled_portraits()
    write_image(folder / "test_collins.png", portraits["astronaut"])
    write_image(folder / "hopper.jpg", portraits["grace_hopper"])
    write_image(folder / "grey.png", portraits["astronaut"] * 0 + 0.5)
    (folder / "broken.png").write_bytes(b"\x89PNG")
    return folder


def test_embedded_from_build_to_export(command, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    pairs = tmp_path / "pairs"
    code, out, _ = command(make_preferences, *EMBEDDED, "--output-dir", pairs)
    assert code == 0 and "4 pairs (train 2, validation 1, held_out 1), 4 synthetic, 4 with known truth" in out
    assert all(pair.synthetic and pair.licence and pair.identity for pair in read_pairs(pairs))
    code, out, _ = command(make_preferences, "lint", pairs, "--no-identity")
    assert code == 0 and "nothing found" in out
    code, out, _ = command(make_preferences, "export", pairs, "--output-dir", tmp_path / "parquet")
    assert code == 0 and "4 pairs as parquet" in out
    code, out, _ = command(make_preferences, "export", tmp_path / "parquet", "--to-folder", "--output-dir", tmp_path / "back")
    assert code == 0 and {pair.id for pair in read_pairs(tmp_path / "back")} == {pair.id for pair in read_pairs(pairs)}


def test_equal_seeds_build_equal_sets_and_others_others(command, tmp_path):
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        assert command(make_preferences, *EMBEDDED, "--output-dir", tmp_path / name, "--seed", seed)[0] == 0
    texts = [(tmp_path / name / "metadata.jsonl").read_text() for name in ("one", "two", "three")]
    assert texts[0] == texts[1] != texts[2]
    assert all(
        path.read_bytes() == (tmp_path / "two" / "images" / path.name).read_bytes() for path in (tmp_path / "one" / "images").iterdir()
    )


def test_photos_with_retouches_and_bad_ones(command, tmp_path, photos):
    finished = tmp_path / "studio"
    finished.mkdir()
    for number in (1, 2):
        write_image(finished / f"test_collins.{number}.png", bundled_portraits()["astronaut"] * (0.9 + 0.05 * number))
    out_dir = tmp_path / "pairs"
    options = ("--generators", "degradations", f"folder:{finished}", "--pairs-per-photo", "1", "--resolution", "64", "--licence", "PD")
    code, _, err = command(make_preferences, "build", photos, "--output-dir", out_dir, *options)
    assert code == 1 and "2 of 4 photos could not be used" in err
    quarantined = [json.loads(line) for line in (out_dir / QUARANTINE).read_text().splitlines()]
    assert sorted(row["text"] for row in quarantined) == ["broken.png", "grey.png"]
    pairs = read_pairs(out_dir)
    assert sorted(pair.synthetic for pair in pairs) == [False, True, True]
    (judgeless,) = [pair for pair in pairs if pair.verdicts is None]
    assert judgeless.origin_a.generator == "studio" and judgeless.source.endswith("test_collins.png") and judgeless.licence == "PD"
    assert len({pair.identity for pair in pairs}) == 2
    assert command(make_preferences, "build", photos, "--output-dir", out_dir, *options, "--overwrite", "--max-bad-share", "0.5")[0] == 0


def test_an_interrupted_build_goes_on(command, tmp_path, stopped_at_the_second):
    made = stopped_at_the_second
    out_dir = tmp_path / "pairs"
    code, _, err = command(make_preferences, *EMBEDDED, "--output-dir", out_dir)
    assert code == 130 and "stopped after 2 of 4" in err and not (out_dir / "metadata.jsonl").exists()
    code, _, err = command(make_preferences, *EMBEDDED, "--output-dir", out_dir, "--seed", "9")
    assert code == 2 and "another --seed" in err
    code, _, err = command(make_preferences, *EMBEDDED, "--output-dir", out_dir)
    assert code == 0 and "going on" in err and len(made) == len(set(made)) == 4
    command(make_preferences, *EMBEDDED, "--output-dir", tmp_path / "whole")
    assert (out_dir / "metadata.jsonl").read_text() == (tmp_path / "whole" / "metadata.jsonl").read_text()
    assert not [path for path in out_dir.iterdir() if path.name.startswith(".")]


def test_lint_takes_photos_without_metadata(command, tmp_path, photos):
    assert "holds no photos (and no metadata.jsonl)" in command(make_preferences, "lint", tmp_path)[2]
    code, out, _ = command(make_preferences, "lint", photos, "--no-identity", "--json", "-")
    (found,) = json.loads(out)["findings"]
    assert code == 1 and found["kind"] == "bad_image" and "broken.png" in found["message"]


def test_lint_says_1_for_findings(command, tmp_path, photos):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "none.png"}\n')
    code, out, _ = command(make_preferences, "lint", tmp_path)
    assert code == 1 and "bad_row" in out
    code, out, _ = command(make_preferences, "lint", tmp_path, "--json", "-")
    assert code == 1 and json.loads(out)["counts"] == {"bad_row": 1}


def test_the_page_is_served_until_interrupted(pair_set_path):
    script = "import sys; sys.argv[0] = 'make-preferences'; from preference_data.main import make_preferences; make_preferences()"
    command = [sys.executable, "-c", script, "annotate", str(pair_set_path), "--web", "--port", "0", "--pairs", "all"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert address, line + process.stderr.read()
        assert b"Judge retouches" in urllib.request.urlopen(address[0], timeout=LONGEST).read()
        process.send_signal(signal.SIGINT)
        assert process.wait(LONGEST) in (0, 130) and "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def two_people(tmp_path):
    """Photos anna/front.png and grace/front.png, and a picture of each that may pass for a retouch."""
    folder = tmp_path / "photos"
    portraits = bundled_portraits()
    for name, pixels in (("anna", portraits["astronaut"]), ("grace", portraits["grace_hopper"][:, :512])):
        (folder / name).mkdir(parents=True)
        write_image(folder / name / "front.png", pixels)
        write_image(folder / f"{name}-label.png", pixels * 0.95)
    return folder


def listed(folder, *rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def quarantined(folder):
    return [json.loads(line) for line in (folder / QUARANTINE).read_text().splitlines()]


def test_nobody_is_given_another_persons_retouches(command, tmp_path, two_people):
    listed(two_people, {"file_name": "anna/front.png"}, {"file_name": "grace/front.png"})
    flat, out = tmp_path / "rt", tmp_path / "pairs"
    flat.mkdir()
    for number in (1, 2):
        write_image(flat / f"front.{number}.png", bundled_portraits()["astronaut"] * (0.9 + 0.05 * number))
    build = ("build", two_people, "--generators", f"folder:{flat}", "--resolution", "64", "--output-dir", out)
    code, _, err = command(make_preferences, *build)
    assert code == 2 and err.count("\n") == 1 and "may be a retouch of anna/front.png or of grace/front.png" in err and not out.exists()
    (flat / "anna").mkdir()
    (flat / "grace").mkdir()
    for number in (1, 2):
        write_image(flat / "grace" / f"front.{number}.png", bundled_portraits()["astronaut"])
        (flat / f"front.{number}.png").rename(flat / "anna" / f"front.{number}.png")
    code, _, err = command(make_preferences, *build)
    assert code == 1 and "1 of 2 photos could not be used" in err
    (bad,) = quarantined(out)
    assert bad["line"] == 2 and "front.1.png: shows another person than its photo" in bad["reason"]
    assert {pair.origin_a.model for pair in read_pairs(out)} <= {"anna/front.1.png", "anna/front.2.png"}


def test_an_anchor_of_another_person_is_quarantined_with_its_line(command, tmp_path, two_people):
    rows = ({"file_name": "none.png"}, {"file_name": "anna/front.png", "anchor_file_name": "anna-label.png"})
    listed(two_people, *rows, {"file_name": "grace/front.png", "anchor_file_name": "anna-label.png"})
    out = tmp_path / "pairs"
    assert command(make_preferences, "build", two_people, "--resolution", "64", "--pairs-per-photo", "1", "--output-dir", out)[0] == 1
    assert [row["line"] for row in quarantined(out)] == [1, 3]
    assert "anna-label.png: shows another person than its photo" in quarantined(out)[1]["reason"]
    assert [pair.source for pair in read_pairs(out)] == ["photos/anna/front.png"]


def test_photos_are_taken_as_clean_or_by_their_anchors(command, tmp_path, two_people):
    listed(two_people, {"file_name": "anna/front.png", "anchor_file_name": "anna-label.png"}, {"file_name": "grace/front.png"})
    build = ("build", two_people, "--resolution", "64", "--pairs-per-photo", "1", "--output-dir")
    assert command(make_preferences, *build, tmp_path / "each")[0] == 0
    assert command(make_preferences, *build, tmp_path / "painted", "--anchors", "painted")[0] == 0
    anchored = [[pair.source for pair in read_pairs(tmp_path / name) if pair.anchor is not None] for name in ("each", "painted")]
    assert anchored == [["photos/anna/front.png"], []]
    code, _, err = command(make_preferences, *build, tmp_path / "file", "--anchors", "file")
    assert code == 2 and err.count("\n") == 1 and "--anchors file: grace/front.png has no anchor_file_name" in err


def test_one_process_at_a_time_writes_a_set(command, tmp_path, monkeypatch):
    """The second one comes while the first is in the middle of its photos, and would replace them."""
    out, one, codes = tmp_path / "pairs", build_module._one, []
    second = "from preference_data.main import make_preferences; make_preferences()"

    def disturbed(row, generators, config):
        if not codes:
            argv = [*EMBEDDED, "--output-dir", str(out), "--overwrite", "--seed", "7"]
            done = subprocess.run([sys.executable, "-c", second, *argv], capture_output=True, text=True, check=False)
            codes.append((done.returncode, done.stderr))
        return one(row, generators, config)

    monkeypatch.setattr(build_module, "_one", disturbed)
    assert command(make_preferences, *EMBEDDED, "--output-dir", out)[0] == 0
    ((code, err),) = codes
    assert code == 2 and err.count("\n") == 1 and f"process {os.getpid()} on " in err and "another process is writing it" in err
    assert len(read_pairs(out)) == 4 and sorted(path.name for path in out.iterdir()) == ["build.json", "images", "metadata.jsonl"]
    with only_writer(out):
        for argv in (("merge", out), (*EMBEDDED, "--output-dir", out, "--overwrite")):
            code, _, err = command(make_preferences, *argv)
            assert code == 2 and err.count("\n") == 1 and "another process is writing it" in err
    assert len(read_pairs(out)) == 4 and not (out / WRITING).exists()


def test_overwrite_leaves_shards_that_are_being_made(command, tmp_path):
    out = tmp_path / "pairs"
    assert command(make_preferences, *EMBEDDED, "--output-dir", out, "--shard", "1/2")[0] == 0
    (out / "shards" / "2-of-2.lock").write_text("{}")
    code, _, err = command(make_preferences, *EMBEDDED, "--output-dir", out, "--overwrite")
    assert code == 2 and err.count("\n") == 1 and "other processes are making its shards" in err and any((out / "images").iterdir())


@pytest.fixture
def pair_set_path(command, tmp_path):
    command(make_preferences, *EMBEDDED, "--output-dir", tmp_path / "set")
    return tmp_path / "set"


def test_merge_needs_judgements_then_writes_them(command, pair_set_path):
    code, _, err = command(make_preferences, "merge", pair_set_path)
    assert code == 2 and "nobody has judged" in err
    first = read_pairs(pair_set_path)[0]
    row = {"pair": first.id, "annotator": "anna", "role": "annotator", "order": "ab", "overall": "tie"}
    row["verdicts"] = dict.fromkeys(first.verdicts, "tie")
    (pair_set_path / "mine.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"pair": "stranger"}) + "\n")
    code, out, err = command(make_preferences, "merge", pair_set_path, "--files", pair_set_path / "mine.jsonl", "--relabel", "--dry-run")
    assert code == 0 and "1 pair given verdicts, 3 kept theirs" in out and "'stranger'" in err
    assert read_pairs(pair_set_path)[0] == first and not (pair_set_path / "annotations").exists()
    code, out, _ = command(make_preferences, "merge", pair_set_path, "--files", pair_set_path / "mine.jsonl", "--dry-run")
    assert code == 0 and "1 of the judged pairs had a verdict already and keep it: --relabel gives them" in out
    command(make_preferences, "merge", pair_set_path, "--files", pair_set_path / "mine.jsonl", "--relabel")
    assert read_pairs(pair_set_path)[0].overall == "tie" and read_pairs(pair_set_path)[0].annotator == "anna"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), ["needs a subcommand", "build"]),
        (("biuld",), ["biuld", "did you mean 'build'"]),
        (("build", "/none"), ["/none", "no such folder"]),
        (("build", "embedded", "--count", "2"), ["--count 2", "at least 3"]),
        (("build", "embedded", "--generators", "degradation"), ["did you mean 'degradations'"]),
        (("build", "embedded", "--generators", "pipeline:/none"), ["model_index.json"]),
        (("build", "/none", "--generators", "rollout:4"), ["--generators rollout", "--resolution 128"]),
        (("build", "embedded", "--split-shares", "0.5", "0.2", "0.2"), ["--split-shares", "sum to 1"]),
        (("build", "embedded", "--resolution", "8"), ["--resolution 8"]),
        (("build", "embedded", "--resolutoin", "8"), ["--resolutoin", "--resolution"]),
        (("build", "embedded", "--output-dir", "/dev/null"), ["/dev/null", "is a file"]),
        (("lint", "/none"), ["/none/metadata.jsonl", "no such file"]),
        (("lint", "/none", "--max-bits", "65"), ["--max-bits 65"]),
        (("annotate", "/none"), ["--web", "--endpoint"]),
        (("annotate", "/none", "--web", "--endpoint", "http://x"), ["one of --web"]),
        (("annotate", "/none", "--web"), ["/none/metadata.jsonl"]),
        (("annotate", "/none", "--endpoint", "localhost:8000", "--model", "m"), ["must begin with http"]),
        (("annotate", "/none", "--endpoint", "http://localhost:8000/v1"), ["--model"]),
        (("annotate", "/none", "--endpoint", "http://x/v1", "--model", "m", "--max-cost", "1"), ["--price-in"]),
        (("annotate", "/none", "--web", "--port", "70000"), ["--port 70000"]),
        (("merge", "/none"), ["/none/metadata.jsonl"]),
        (("export", "/none"), ["/none/metadata.jsonl"]),
    ],
)
def test_mistakes_are_one_line_and_2(command, tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(make_preferences, *argv)
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert all(word in err for word in words), err
    assert list(tmp_path.iterdir()) == []


def test_folders_with_other_things_are_left_alone(command, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for more in ((), ("--overwrite",)):
        code, _, err = command(make_preferences, *EMBEDDED, "--output-dir", tmp_path, *more)
        assert code == 2 and "no pair set" in err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_overwrite_deletes_no_photos_and_no_judgements(command, tmp_path, pair_set_path):
    """A photo folder has a metadata.jsonl and often images/, as a pair set has."""
    mine = tmp_path / "mine"
    (mine / "images").mkdir(parents=True)
    write_image(mine / "images" / "me.png", bundled_portraits()["astronaut"])
    (mine / "metadata.jsonl").write_text('{"file_name": "images/me.png"}\n')
    for photos in (mine, "embedded"):
        code, _, err = command(make_preferences, "build", photos, "--output-dir", mine, "--overwrite")
        assert code == 2 and err.count("\n") == 1 and ("holds PHOTOS" in err or "no pair set" in err), err
    assert (mine / "images" / "me.png").is_file() and (mine / "metadata.jsonl").is_file()
    inside = pair_set_path / "images"
    code, _, err = command(make_preferences, "build", inside, "--output-dir", pair_set_path, "--overwrite")
    assert code == 2 and "holds PHOTOS" in err and any(inside.iterdir())
    (pair_set_path / "annotations").mkdir()
    (pair_set_path / "annotations" / "anna.jsonl").write_text("{}\n")
    code, _, err = command(make_preferences, *EMBEDDED, "--output-dir", pair_set_path, "--overwrite")
    assert code == 2 and "have judged" in err and (pair_set_path / "metadata.jsonl").is_file()


def test_a_folder_without_a_usable_photo_leaves_nothing_behind(command, tmp_path, photos):
    (tmp_path / "none").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "broken.png").write_bytes(b"\x89PNG")
    for name, word in (("none", "holds no photos"), ("bad", "no photo can be used")):
        code, _, err = command(make_preferences, "build", tmp_path / name, "--output-dir", tmp_path / "pairs")
        assert code == 2 and word in err and err.count("\n") == 1 and not (tmp_path / "pairs").exists()


def test_a_set_is_not_replaced_unasked(command, pair_set_path):
    before = (pair_set_path / "metadata.jsonl").read_text()
    code, _, err = command(make_preferences, *EMBEDDED, "--output-dir", pair_set_path, "--seed", "5")
    assert code == 2 and "--overwrite" in err and (pair_set_path / "metadata.jsonl").read_text() == before


def test_a_taken_port_is_named(command, pair_set_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = command(make_preferences, "annotate", pair_set_path, "--web", "--pairs", "all", "--port", port)
    assert code == 2 and f"--port {port}: " in err and "in use" in err


@pytest.mark.parametrize("subcommand", ["build", "lint", "annotate", "merge", "export", "makeup", "emotion"])
def test_help_tells_the_options_without_heavy_imports(subcommand):
    script = (
        "import sys; sys.argv = ['make-preferences', sys.argv[1], '--help']\n"
        "from preference_data.main import make_preferences\n"
        "try: make_preferences()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'datasets', 'diffusers', 'starlette', 'httpx', 'scipy'} & sys.modules.keys(); assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script, subcommand], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--help" in done.stdout, done.stderr


def test_rollouts_go_through_schema_and_disk(command, tmp_path):
    options = ("--generators", "rollout", "--count", "3", "--pairs-per-photo", "1", "--output-dir", tmp_path / "pairs")
    assert command(make_preferences, "build", "embedded", *options)[0] == 0
    assert command(make_preferences, "lint", tmp_path / "pairs", "--no-identity")[0] == 0
    pairs = read_pairs(tmp_path / "pairs")
    assert {pair.split for pair in pairs} == {"held_out", "train", "validation"} and all(pair.synthetic for pair in pairs)
    for pair in pairs:
        assert pair.annotator == "verifiable" and pair.origin_a.generator == pair.origin_b.generator == "rollout"
        for name, (a, b) in pair.scores.items():  # rounded to .001
            assert abs(abs(a - b) - 4 * NEAR) < 0.002 or (pair.verdicts[name] == "tie") == (abs(a - b) < 4 * NEAR)
