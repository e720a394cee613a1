"""extract-makeup as a user runs it, on a tiny model with random weights whose answers are scripted where they must be makeup."""

import json

import pytest
import torch
from tiny_vlm import write_tiny_vlm

from policies.vlm import extract
from policies.vlm.main import extract_makeup
from portraitkit.faces.align import align_face
from portraitkit.faces.mesh import require_mesh
from portraitkit.faces.portraits import bundled_portraits
from portraitkit.pictures.images import read_image, write_image
from portraitkit.vlm.generate import Completion
from portraitkit.vlm.task import ASKED
from preference_data.people.makeup import render_makeup

LOOK = [
    {"shape": "LIP_FULL_BASIC", "color": "#B01E36"},
    {"shape": "BLUSHER_CENTER_WIDE_BASIC", "color": "#E06050"},
    {"shape": "EYESHADOW_OVEREYE_FULL_BASIC", "color": "#3050A0"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tiny random Qwen2.5-VL."""
    return write_tiny_vlm(tmp_path_factory.mktemp("model"), "<answer>[]</answer> Makeup? ")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """hopper.png wears the look; two.png shows two faces, grey.png none; cut.png is damaged."""
    folder = tmp_path_factory.mktemp("photos")
    faces = bundled_portraits()
    with torch.no_grad():
        dressed = render_makeup(faces["grace_hopper"], require_mesh(faces["grace_hopper"])[1], LOOK)
    write_image(folder / "hopper.png", dressed)
    write_image(folder / "two.png", torch.cat([faces["astronaut"], faces["grace_hopper"][:, :512]], 2))
    write_image(folder / "grey.png", torch.full((3, 200, 300), 0.5))
    write_image(folder / "small.png", faces["astronaut"][:, ::5, ::5])
    (folder / "cut.png").write_bytes((folder / "hopper.png").read_bytes()[:5000])
    return folder


@pytest.fixture
def scripted(monkeypatch):
    """A function that sets the model's answer; gives the list of (prompt, size of the picture) that were asked."""
    asked = []

    def script(text, *, cut=False):
        def answer(model, processor, prompt, rows, *, max_tokens, **options):
            asked.append((prompt, tuple(rows[0].pictures[0].shape)))
            return [[Completion(text, 9, cut)]]

        monkeypatch.setattr(extract, "complete", answer)
        return asked

    return script


def answered(look):
    return f"<answer>{json.dumps(look)}</answer>"


def test_the_makeup_is_printed_and_tried_on_another_face(command, model, photos, scripted, tmp_path):
    asked = scripted(answered(LOOK))
    out = tmp_path / "out"
    code, printed, err = command(extract_makeup, photos / "hopper.png", "--model", model, "--output-dir", out)
    assert code == 0, err
    assert json.loads(printed) == LOOK and "try_on.png" in err
    assert asked[0][1] == (3, 512, 512) and "<answer>" in asked[0][0]
    found = json.loads((out / "makeup.json").read_text())
    assert [(item["shape"], item["color"]) for item in found["look"]] == [(item["shape"], item["color"]) for item in LOOK]
    assert [item["alpha"] for item in found["look"]] == [190, 80, 180] and found["face"] == "embedded portrait astronaut"
    picture = read_image(out / "try_on.png").pixels
    assert picture.shape == (3, 44 + 512 + 16 + 3 * 40, 4 * 16 + 3 * 512)
    photo, bare, dressed = (picture[:, 44 : 44 + 512, 16 + place * 528 : 528 + place * 528] for place in range(3))
    portrait = bundled_portraits()["astronaut"]
    with torch.no_grad():
        mesh = require_mesh(portrait)[1]
        crop = align_face(portrait, mesh, 512)
        wanted = render_makeup(crop.pixels, crop.to_crop(mesh), LOOK)
    torch.testing.assert_close(bare, crop.pixels, atol=0.003, rtol=0)
    torch.testing.assert_close(dressed, wanted, atol=0.003, rtol=0)
    assert (photo - bare).abs().mean() > 0.05 and (dressed - bare).abs().max() > 0.2
    assert sorted(path.name for path in out.iterdir()) == ["makeup.json", "try_on.png"]


def test_a_bare_face_is_said_to_be_one(command, model, photos, scripted, tmp_path):
    scripted("<answer>[]</answer>")
    code, printed, err = command(extract_makeup, photos / "hopper.png", "--model", model, "--output-dir", tmp_path / "out")
    assert code == 0 and json.loads(printed) == [] and f"no makeup was found on {photos / 'hopper.png'}" in err
    assert json.loads((tmp_path / "out" / "makeup.json").read_text())["look"] == []


@pytest.mark.parametrize("text", ["52 texture 5274.4 %", "<think>(AU6) show happiness</think><answer>happiness</answer>"])
def test_an_answer_of_another_task_is_refused_in_one_line(command, model, photos, scripted, tmp_path, text):
    scripted(text)
    code, printed, err = command(extract_makeup, photos / "hopper.png", "--model", model, "--output-dir", tmp_path / "out")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 1 and printed == "" and len(errors) == 1 and text in errors[0] and "a list of up to 3" in errors[0]
    assert not (tmp_path / "out").exists()


def test_lips_alone_on_a_face_of_the_users(command, model, photos, scripted, tmp_path):
    scripted('<answer>{"color": "#b01e36"}</answer>')
    code, printed, err = command(
        extract_makeup,
        photos / "hopper.png",
        *("--model", model, "--lips-only", "--face", photos / "hopper.png", "--size", 96, "--output-dir", tmp_path / "out"),
    )
    assert code == 0, err
    assert json.loads(printed) == LOOK[:1]


def test_a_model_that_was_trained_briefly_is_asked_briefly(command, model, photos, scripted, tmp_path):
    brief = tmp_path / "model"
    brief.mkdir()
    for path in model.iterdir():
        (brief / path.name).write_bytes(path.read_bytes())
    config = json.loads((brief / "config.json").read_text())
    (brief / "config.json").write_text(json.dumps({**config, ASKED: "brief"}))
    asked = scripted(answered(LOOK))
    assert command(extract_makeup, photos / "hopper.png", "--model", brief, "--output-dir", tmp_path / "out")[0] == 0
    assert asked == [("Makeup?", (3, 128, 128))]


def test_what_a_model_with_random_weights_says_is_shown_and_nothing_is_written(command, model, photos, tmp_path):
    code, printed, err = command(
        extract_makeup, photos / "hopper.png", "--model", model, "--max-tokens", 4, "--output-dir", tmp_path / "out"
    )
    assert code == 1 and printed == "" and err.count("error: ") == 1 and "--max-tokens 4" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lips are\nred", ["up to 3", '"lips are\\nred"']),
        (answered([{"shape": "LIP_FULL_BASIC", "color": "#B01E3G"}]), ["up to 3", "#B01E3G"]),
        (answered([{"shape": "LIP_FUL_BASIC", "color": "#B01E36"}]), ["no such shape", "LIP_FULL_BASIC"]),
        (answered(LOOK + LOOK[:1]), ["up to 3"]),
    ],
)
def test_an_answer_that_is_no_makeup(command, model, photos, scripted, tmp_path, text, words):
    scripted(text)
    code, printed, err = command(extract_makeup, photos / "hopper.png", "--model", model, "--output-dir", tmp_path / "out")
    line = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 1 and printed == "" and len(line) == 1 and all(word in line[0] for word in words), err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["two.png"], ["two.png", "2 faces", "crop"]),
        (["grey.png"], ["grey.png", "no face"]),
        (["small.png"], ["small.png", "at least 64"]),
        (["cut.png"], ["cut.png"]),
        (["none.png"], ["none.png", "no such file"]),
        (["."], [".: is a folder", "one picture"]),
        (["hopper.png", "--face", "two.png"], ["two.png", "2 faces"]),
        (["hopper.png", "--face", "grey.png"], ["grey.png", "no face"]),
        (["hopper.png", "--model", "./nothing"], ["./nothing"]),
        (["hopper.png", "--adapter", "nothing"], ["--adapter nothing"]),
        (["hopper.png", "--device", "tpu"], ["--device tpu"]),
        (["hopper.png", "--size", "8"], ["--size 8", "64"]),
        (["hopper.png", "--output-dir", "grey.png"], ["grey.png", "file"]),
        (["hopper.png", "--output-dir", "/proc/portraitkit"], ["--output-dir /proc/portraitkit", "cannot be written"]),
        (["hopper.png", "--sise", "8"], ["--sise"]),
    ],
)
def test_mistakes_are_one_line(command, model, photos, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(photos)
    monkeypatch.setattr(extract, "ask", None)  # refused before the model is loaded or asked
    base = [] if "--model" in options else ["--model", model]
    base += [] if "--output-dir" in options else ["--output-dir", tmp_path / "out"]
    code, printed, err = command(extract_makeup, *base, *options)
    message = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and printed == "" and len(message) == 1 and all(word in message[0] for word in words), err
    assert not (tmp_path / "out").exists()


def test_a_result_is_replaced_only_when_asked(command, model, photos, scripted, tmp_path):
    scripted(answered(LOOK[:1]))
    options = [photos / "hopper.png", "--model", model, "--output-dir", tmp_path]
    assert command(extract_makeup, *options)[0] == 0
    scripted(answered(LOOK[1:2]))
    code, _, err = command(extract_makeup, *options)
    assert code == 2 and "--overwrite" in err
    assert json.loads((tmp_path / "makeup.json").read_text())["look"][0]["shape"] == "LIP_FULL_BASIC"
    assert command(extract_makeup, *options, "--overwrite")[0] == 0
    assert json.loads((tmp_path / "makeup.json").read_text())["look"][0]["shape"] == "BLUSHER_CENTER_WIDE_BASIC"
