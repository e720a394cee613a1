"""`make-preferences makeup` from the command line."""

import json
import signal

import pytest
import torch
from written import lines

from policies.vlm.tasks import load_task
from portraitkit.faces.portraits import bundled_portraits
from portraitkit.pictures.images import read_image, write_image
from preference_data.commands import makeup_pairs
from preference_data.main import make_preferences
from preference_data.people.makeup import render_makeup
from preference_data.people.makeup_shapes import SHAPES

SMALL = ("--size", 96)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two people, one of them twice, one picture without a face and one damaged file."""
    folder = tmp_path_factory.mktemp("faces")
    (folder / "more").mkdir()
    for name, pixels in bundled_portraits().items():
        write_image(folder / f"{name}.png", pixels)
    write_image(folder / "more" / "again.jpg", bundled_portraits()["astronaut"][:, ::2, ::2], quality=85)
    write_image(folder / "grey.png", torch.full((3, 64, 64), 0.5))
    (folder / "cut.png").write_bytes((folder / "astronaut.png").read_bytes()[:5000])
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def test_a_folder_of_photos(command, photos, tmp_path):
    out = tmp_path / "set"
    options = ("--output-dir", out, "--looks-per-face", 2, "--min-face", 48, "--bare-share", 0)
    code, _, err = command(make_preferences, "makeup", photos, *options, *SMALL)
    assert code == 0 and "2 photos set aside" in err
    train, test = lines(out / "train.jsonl"), lines(out / "test.jsonl")
    by_split = [{row["source_photo"] for row in rows} for rows in (train, test)]
    assert sorted(map(sorted, by_split)) == [["astronaut.png", "more/again.jpg"], ["grace_hopper.png"]]
    assert len(train) + len(test) == 6 and len({row["image"] for row in train + test}) == 6
    for row in train + test:
        bare, image = (read_image(out / row[key]).pixels for key in ("bare_image", "image"))
        assert bare.shape == image.shape == (3, 96, 96) and not torch.equal(bare, image)
        assert row["synthetic_makeup"] is True and row["synthetic_face"] is False and "<answer>" in row["prompt"]
        assert 1 <= len(row["solution"]) <= 3 and all(set(item) == {"shape", "color"} for item in row["solution"])
        assert [p["alpha"] for p in row["parameters"]] == [SHAPES[item["shape"]].alpha for item in row["solution"]]
    quarantine = {line["photo"]: line["reason"] for line in lines(out / "quarantine.jsonl")}
    assert set(quarantine) == {"grey.png", "cut.png"} and "no face" in quarantine["grey.png"]
    assert read_image(out / "contact_sheet.png").pixels.shape[2] == 2 * 3 * 192
    environment = json.loads((out / "environment.json").read_text())
    assert environment["command"][1] == "makeup" and environment["seed"] == 42
    assert not list(out.glob(".*"))


def test_the_truth_makes_the_picture(command, photos, tmp_path):
    """Rendering a row's solution on its bare picture, with the mesh of the whole photo, gives the row's picture back."""
    from portraitkit.faces.align import align_face
    from portraitkit.faces.mesh import require_mesh

    out = tmp_path / "set"
    command(make_preferences, "makeup", photos, "--output-dir", out, "--bare-share", 0, *SMALL)
    row = next(row for row in lines(out / "train.jsonl") + lines(out / "test.jsonl") if row["source_photo"] == "astronaut.png")
    photo = read_image(photos / "astronaut.png").pixels
    mesh = require_mesh(photo)[1].detach()
    aligned = align_face(photo, mesh, 96)
    expected = render_makeup(aligned.pixels, aligned.to_crop(mesh), row["solution"])
    assert (expected - read_image(out / row["image"]).pixels).abs().max() <= 0.51 / 255


def test_some_faces_are_bare_and_the_others_stay_as_they_are(command, tmp_path):
    sets = {}
    for share in (None, 0, 0.5, 1):
        out = tmp_path / str(share)
        options = ("--output-dir", out, "--count", 8, "--image-format", "jpg", *SMALL, *(() if share is None else ("--bare-share", share)))
        assert command(make_preferences, "makeup", "embedded", *options)[0] == 0
        sets[share] = {row["source_photo"]: row for row in lines(out / "train.jsonl") + lines(out / "test.jsonl")}
        for row in sets[share].values():
            made_up = bool(row["solution"])
            assert (row["image"] != row["bare_image"]) == row["synthetic_makeup"] == bool(row["parameters"]) == made_up
            assert load_task("makeup").read_truth(row) == row["solution"] and (out / row["image"]).is_file()
    bare = {share: {name for name, row in rows.items() if not row["solution"]} for share, rows in sets.items()}
    assert not bare[0] and bare[None] <= bare[0.5] < bare[1] == set(sets[1]) and 1 <= len(bare[0.5]) <= 7
    assert all(sets[0][name] == row for name, row in sets[0.5].items() if row["solution"])


def test_without_cropping_photos_keep_their_size(command, photos, tmp_path):
    out = tmp_path / "set"
    options = ("--no-crop", "--lips-only", "--image-format", "jpg", "--count", 2)
    assert command(make_preferences, "makeup", photos, "--output-dir", out, *options)[0] == 0
    rows = lines(out / "train.jsonl") + lines(out / "test.jsonl")
    assert {read_image(out / row["image"]).pixels.shape for row in rows} == {(3, 512, 512), (3, 600, 512)}
    assert all([item["shape"] for item in row["solution"]] == ["LIP_FULL_BASIC"] and '{"color"' in row["prompt"] for row in rows)


def test_embedded_people_and_the_same_again(command, tmp_path):
    sets = []
    for name in ("one", "other"):
        out = tmp_path / name
        assert command(make_preferences, "makeup", "embedded", "--output-dir", out, "--count", 5, "--looks-per-face", 2, *SMALL)[0] == 0
        train, test = lines(out / "train.jsonl"), lines(out / "test.jsonl")
        assert len(train) == 4 and len(test) == 1  # 3 people with 2 looks; the last look is one too many
        assert {row["source_photo"].split("-")[0] for row in test} == {"embedded/held_out"}
        assert all(row["synthetic_face"] for row in train + test)
        sets.append({path.name: path.read_bytes() for path in (out / "images").iterdir()} | {"rows": train + test})
    assert sets[0] == sets[1]
    out = tmp_path / "third"
    command(make_preferences, "makeup", "embedded", "--output-dir", out, "--count", 5, "--looks-per-face", 2, "--seed", 1, *SMALL)
    assert lines(out / "train.jsonl")[0]["solution"] != sets[0]["rows"][0]["solution"]


def test_interrupted_and_continued_is_as_if_never_interrupted(command, tmp_path, monkeypatch):
    options = ("--count", 4, "--bare-share", 0, *SMALL)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command(make_preferences, "makeup", "embedded", "--output-dir", whole, *options)
    calls = []
    real = makeup_pairs.open_face

    def stop_at_second(config, name):
        calls.append(name)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return real(config, name)

    monkeypatch.setattr(makeup_pairs, "open_face", stop_at_second)
    code, _, err = command(make_preferences, "makeup", "embedded", "--output-dir", cut, *options)
    assert code == 130 and "2 photos are done" in err and not (cut / "train.jsonl").exists()
    with (cut / "faces.jsonl").open("a") as journal:
        journal.write('{"photo": "embedded/tr')  # as a killed process leaves it
    code, _, err = command(make_preferences, "makeup", "embedded", "--output-dir", cut, *options)
    assert code == 0 and "going on" in err and len(calls) == 4
    for name in ("train.jsonl", "test.jsonl", "faces.jsonl", "contact_sheet.png"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    next((cut / "images").glob("*_look0.png")).unlink()
    assert command(make_preferences, "makeup", "embedded", "--output-dir", cut, *options)[0] == 0
    assert len(calls) == 5 and len(list((cut / "images").iterdir())) == 8


def test_mistakes_are_one_line_and_leave_nothing(command, photos, tmp_path):
    out = tmp_path / "set"
    (tmp_path / "empty").mkdir()
    for argv, words in (
        ((tmp_path / "none",), ["none", "no such folder"]),
        ((tmp_path / "empty",), ["no photos"]),
        ((photos, "--count", 0), ["--count 0", "at least 1"]),
        ((photos, "--size", 8), ["--size 8", "64"]),
        ((photos, "--test-share", 1.0), ["--test-share 1: must be a share from 0 to below 1"]),
        ((photos, "--lipsonly"), ["--lips-only"]),
        (("embedded", "--no-crop"), ["--no-crop"]),
        ((photos, "--bare-share", 1.5), ["--bare-share 1.5", "from 0 to 1"]),
        ((photos, "--lips-only", "--bare-share", 0.1), ["--bare-share 0.1", "--lips-only"]),
    ):
        code, stdout, err = command(make_preferences, "makeup", *argv, "--output-dir", out)
        assert code == 2 and stdout == "" and len(err.splitlines()) == 1 and all(word in err for word in words), err
        assert not out.exists()


def test_other_folders_are_left_alone(command, photos, tmp_path):
    out = tmp_path / "set"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert command(make_preferences, "makeup", "embedded", "--output-dir", out, "--count", 1)[0] == 2
    (out / "config.json").write_text('{"learning_rate": 1}')
    code, _, err = command(make_preferences, "makeup", "embedded", "--output-dir", out, "--count", 1, "--overwrite")
    assert code == 2 and "did not make" in err and (out / "mine.txt").exists()


def test_other_options_need_overwrite(command, tmp_path):
    out = tmp_path / "set"
    base = ("makeup", "embedded", "--output-dir", out, "--count", 1, *SMALL)
    assert command(make_preferences, *base)[0] == 0
    code, _, err = command(make_preferences, *base, "--lips-only")
    assert code == 2 and "lips_only False -> True" in err and len(err.splitlines()) == 1
    assert command(make_preferences, *base, "--lips-only", "--overwrite")[0] == 0
    assert '{"color"' in lines(out / "train.jsonl")[0]["prompt"]


def test_too_many_unusable_photos_stop_the_run(command, tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    for i in range(25):
        (folder / f"{i:02}.png").write_bytes(b"no picture")
    code, _, err = command(make_preferences, "makeup", folder, "--output-dir", tmp_path / "set")
    assert code == 2 and "20 of the first 20" in err and "--max-unusable" in err and len(err.splitlines()) == 1
    for path in list(folder.iterdir())[3:]:
        path.unlink()
    code, _, err = command(make_preferences, "makeup", folder, "--output-dir", tmp_path / "set")
    assert code == 2 and "none of 3 photos" in err
    assert not (tmp_path / "set").exists()  # good photos may go there


def test_unusable_photos_before_and_after_the_first_good_one(command, photos, tmp_path):
    folder, out = tmp_path / "faces", tmp_path / "set"
    folder.mkdir()
    for i in range(25):
        (folder / f"{i + 10}.png").write_bytes(b"no picture")
    (folder / "12.png").write_bytes((photos / "astronaut.png").read_bytes())
    code, _, err = command(make_preferences, "makeup", folder, "--output-dir", out, *SMALL)
    assert code == 2 and "19 of the first 20" in err and len(lines(out / "faces.jsonl")) == 1
    assert len(lines(out / "quarantine.jsonl")) == 19  # says which
    code, _, err = command(make_preferences, "makeup", folder, "--output-dir", out, "--max-unusable", 1, *SMALL)
    assert code == 0 and "24 photos set aside" in err and len(lines(out / "quarantine.jsonl")) == 24


def test_links_out_of_the_folder_are_set_aside(command, photos, tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    (folder / "a.png").symlink_to(photos / "astronaut.png")
    (folder / "b.png").write_bytes((photos / "grace_hopper.png").read_bytes())
    assert command(make_preferences, "makeup", folder, "--output-dir", tmp_path / "set", *SMALL)[0] == 0
    assert "leads out of" in (tmp_path / "set" / "quarantine.jsonl").read_text()


def test_other_photos_of_a_person_fall_on_the_same_side(command, photos, tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    astronaut, hopper = bundled_portraits().values()
    for name, pixels in (("a.png", astronaut), ("b.png", hopper), ("c.png", (astronaut.flip(2) * 0.8 + 0.05).clamp(0, 1))):
        write_image(folder / name, pixels)
    assert command(make_preferences, "makeup", folder, "--output-dir", tmp_path / "set", *SMALL)[0] == 0
    by_split = [{row["source_photo"] for row in lines(tmp_path / "set" / f"{split}.jsonl")} for split in ("train", "test")]
    assert by_split == [{"a.png", "c.png"}, {"b.png"}]


def test_the_dispatcher(command):
    code, out, _ = command(make_preferences, "--help")
    assert code == 0 and "makeup" in out
    for argv, words in (((), "needs a subcommand"), (("makup",), "did you mean 'makeup'")):
        code, out, err = command(make_preferences, *argv)
        assert code == 2 and out == "" and words in err
