"""`align-retoucher --photos FOLDER` from the command line: what is set aside, split and refused, and where anchors come from."""

import json
from dataclasses import replace

import pytest
import torch
from refusal import check_refusal

from policies.retoucher.main import align_retoucher
from portraitkit.faces.portraits import bundled_portraits
from portraitkit.pictures.images import resize, write_image
from preference_data.people import photos as photo_folder

TINY = {"photos-per-step": 1, "group-size": 2, "max-train-steps": 1, "validation-photos": 1, "held-out-photos": 2, "warmup-steps": 0}
SHORT = [text for name, value in TINY.items() for text in (f"--{name}", str(value))] + ["--num-steps", "2", "--segments", "1"]


@pytest.fixture(scope="module")
def portrait():
    return bundled_portraits()["astronaut"]


@pytest.fixture
def folder(tmp_path, portrait):
    """A photo folder of five good rows; tests spoil some."""
    write_image(tmp_path / "b.png", (portrait * 0.98).clamp(0, 1))
    splits = ["train", "train", "validation", "held_out", "held_out"]
    rows = [{"file_name": f"{n}.png", "anchor_file_name": "b.png", "split": split, "identity": split} for n, split in enumerate(splits)]
    for row in rows:
        write_image(tmp_path / row["file_name"], portrait)
    write_rows(tmp_path, rows)
    return tmp_path, rows


def write_rows(folder, rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_bad_photos(folder):
    """Their rows, and a word of why each cannot be used."""
    hopper = bundled_portraits()["grace_hopper"][:, :512, :512]
    small = torch.full((3, 256, 256), 0.5)
    small[:, :72, :72] = resize(bundled_portraits()["astronaut"], (72, 72))
    for name, pixels in (("hopper", hopper), ("grey", torch.full((3, 200, 200), 0.5)), ("small", small)):
        write_image(folder / f"{name}.png", pixels)
    (folder / "broken.png").write_bytes(b"no picture")
    reasons = {"hopper.png": "another person", "grey.png": "no face", "small.png": "at least 48 needed", "broken.png": "cannot be read"}
    reasons |= {"../0.png": "leaves the data folder", "gone.png": "no such file"}
    return [{"file_name": name, "anchor_file_name": "b.png"} for name in reasons], list(reasons.values())


def test_a_users_photos_with_anchors(command, folder, monkeypatch):
    """What cannot be used is set aside with its line; nothing is looked at twice, and no photo is evaluated twice."""
    path, rows = folder
    bad, reasons = write_bad_photos(path)
    write_rows(path, [*bad, *rows])
    options = ["--photos", path, *SHORT, "--held-out-photos", 9]
    code, _, err = command(align_retoucher, *options, "--output-dir", path / "run")
    assert code == 0, err
    assert "line 5: file_name '../0.png': leaves the data folder" in err and "6 photos set aside in all" in err
    assert "train 2 photos of 1 person, validation 1 photo of 1 person, held_out 2 photos of 1 person" in err
    aside = [json.loads(line) for line in (path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(row["line"] for row in aside) == [1, 2, 3, 4, 5, 6]
    assert all(reasons[row["line"] - 1] in row["reason"] for row in aside), aside
    assert json.loads((path / "run" / "summary.json").read_text())["people"] == {"train": 1, "validation": 1, "held_out": 1}
    assert len((path / "run" / "held_out" / "values.jsonl").read_text().splitlines()) == 2
    for page in ("report.html", "README.md"):
        assert "Too few people (1) for a verdict" in (path / "run" / page).read_text()
    monkeypatch.setattr(photo_folder, "find_face", None)  # faces are known from the first run
    assert command(align_retoucher, *options, "--output-dir", path / "again")[0] == 0


@pytest.fixture
def three_people(tmp_path, portrait, monkeypatch):
    """Two photos of each, without metadata; what the identity net says of them is given."""
    find, people = photo_folder.find_face, tmp_path / "people"
    monkeypatch.setattr(
        photo_folder, "find_face", lambda pixels, path: replace(find(pixels, path), embedding=torch.eye(128)[int(path.stem) // 2])
    )
    people.mkdir()
    for number in range(6):
        write_image(people / f"{number}.png", portrait)
    return people


def test_photos_without_metadata_train_with_anchors_or_without(command, tmp_path, three_people):
    options = ["--photos", three_people, *SHORT, "--cache-dir", tmp_path / "cache", "--output-dir"]
    words = ["6 of 6 photos have no anchor_file_name", "line 1, 0.png", "--anchors painted", "--anchors best-of-n", "--no-dpg"]
    check_refusal(*command(align_retoucher, *options, tmp_path / "run"), words)
    for name, more in {"no": ["--no-dpg"], "painted": ["--anchors", "painted"], "best": ["--anchors", "best-of-n", "--best-of", 2]}.items():
        code, _, err = command(align_retoucher, *options, tmp_path / name, *more)
        assert code == 0, err
        assert "train 2 photos of 1 person, validation 2 photos of 1 person, held_out 2 photos of 1 person" in err
        assert ("blemishes are guessed" in err) == (name != "painted")
        assert [path.suffix for path in sorted((tmp_path / name).glob("anchors/*"))] == ([".png", ".jsonl"] if name == "best" else [])
    assert "taken as clean portraits" in (tmp_path / "painted" / "README.md").read_text()


def spoil_anchor_missing(folder, rows):
    del rows[3]["anchor_file_name"]


def spoil_null(folder, rows):
    rows[2]["anchor_file_name"] = None


def spoil_all(folder, rows):
    write_image(folder / "b.png", bundled_portraits()["grace_hopper"][:, :512, :512])


def spoil_split(folder, rows):
    rows[2]["split"] = "train"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_anchor_missing, ["line 4", "anchor_file_name", "--no-dpg"]),
        (spoil_null, ["line 3", "anchor_file_name", "--no-dpg"]),
        (spoil_all, ["no photo can be used (5 were refused)", "b.png", "another person"]),
        (spoil_split, ["5 photos of 3 people leave none for validation", "add people"]),
    ],
)
def test_photos_that_cannot_be_used(command, folder, spoil, words):
    path, rows = folder
    spoil(path, rows)
    write_rows(path, rows)
    code, out, err = command(align_retoucher, "--photos", path, "--output-dir", path / "run", *SHORT)
    check_refusal(code, out, err, words)
    assert not (path / "run").exists()


def test_a_judge_that_needs_anchors_says_so(command, judge_folder, folder):
    path, rows = folder
    write_rows(path, [{key: value for key, value in row.items() if key != "anchor_file_name"} for row in rows])
    options = ["--no-dpg", "--photos", path, "--reward", f"judge:{judge_folder}:versus_anchor", "--output-dir", path / "run", *SHORT]
    code, _, err = command(align_retoucher, *options)
    assert code == 2 and "needs an anchor_file_name for every photo" in err.splitlines()[-1]
