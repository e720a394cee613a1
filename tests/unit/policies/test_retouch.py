"""`retouch-portrait`: every face of a photo or a folder, nothing else; what is wrong is said in one line."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PilImage

from policies.retoucher.backbones import tiny
from policies.retoucher.backbones.tiny import EMBEDDED
from policies.retoucher.main import retouch_portrait
from policies.retoucher.model.adapter import FILE
from policies.retoucher.retouch.command import plan_jobs, retouch_main
from policies.retoucher.retouch.faces import apply_controls, find_faces, take_apart
from policies.retoucher.retouch.options import ALIGNED, EMBEDDED_STEPS, Controls, RetouchConfig
from portraitkit.config import load_config
from portraitkit.errors import ConfigError, FaceError, ImageError, WeightsError
from portraitkit.faces.detect import detect_faces
from portraitkit.faces.mesh import face_mesh
from portraitkit.faces.portraits import bundled_portraits
from portraitkit.faces.regions import region_masks
from portraitkit.pictures.images import read_image, resize, write_image
from tools.embedded import tiny_kontext

PAINTER = '''
"""A backbone that makes the left half of every crop brighter by .1 and the right darker, less the prompt's length over 1000."""

import torch
from diffusers.loaders import PeftAdapterMixin
from torch import nn

from policies.retoucher.model.backbone import Condition


class Still(nn.Identity, PeftAdapterMixin):
    pass


class Painter:
    name, resolution, lora_targets, base_model, licence = "painter", 64, [], "none", "none"
    transformer, forwards = Still(), 1

    def encoding_key(self):
        return self.name

    def sigmas(self, num_steps):
        return torch.linspace(1, 0, num_steps + 1).tolist()

    def condition(self, images, prompt):
        assert images.shape[1:] == (3, 64, 64)
        return Condition(images.flatten(2).mT, images, torch.full((1, 1, 1), len(prompt) / 1000), torch.zeros(1, 1))

    def encode(self, images):
        raise NotImplementedError

    def noise(self, count, generator):
        return torch.randn(count, 1, 1, generator=generator)

    def velocity(self, x, sigma, condition):
        return torch.zeros_like(x)

    def decode(self, x, condition):
        halves = torch.linspace(10, -10, 64).clamp(-1, 1)
        return (condition.residual + halves * (0.1 - condition.prompt)).clamp(0, 1)


def BACKBONE(model, resolution, device):
    return Painter()
'''


@pytest.fixture(scope="module")
def portraits():
    """Darkened, so that brightening clips nothing."""
    return {name: (pixels * 0.7 * 255).round() / 255 for name, pixels in bundled_portraits().items()}


@pytest.fixture
def painter(tmp_path):
    """Options for a backbone that paints."""
    (tmp_path / "painter.py").write_text(PAINTER)
    return ["--backbone", f"{tmp_path / 'painter.py'}:BACKBONE", "--device", "cpu", "--prompt", "", "--tone", "1"]


@pytest.fixture
def photos(tmp_path, portraits):
    """A folder with a portrait, a picture of two people and one of nobody."""
    folder = tmp_path / "photos"
    folder.mkdir()
    write_image(folder / "one.png", portraits["astronaut"])
    write_image(folder / "two.png", both(portraits))
    write_image(folder / "nobody.png", portraits["grace_hopper"][:, 400:])
    return folder


def both(portraits):
    return torch.cat([portraits["astronaut"], portraits["grace_hopper"][:, :512]], 2)


def ovals(pixels):
    masks = [region_masks(face_mesh(pixels, face), *pixels.shape[1:])["face_oval"] for face in detect_faces(pixels)]
    return torch.stack(masks).amax(0)[0]


def array(path):
    with PilImage.open(path) as picture:
        return np.array(picture).astype(int)


def run(monkeypatch, *argv):
    """The console command; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["retouch-portrait", *map(str, argv)])
    with pytest.raises(SystemExit) as stop:
        retouch_portrait()
    return stop.value.code or 0


def test_both_faces_and_nothing_else(photos, painter, tmp_path, capsys):
    out = tmp_path / "new" / "two.png"
    assert retouch_main([str(photos / "two.png"), str(out), *painter]) == 0
    assert capsys.readouterr().out == f"{photos / 'two.png'} -> {out}: 2 faces retouched\n"
    before, after = array(photos / "two.png"), array(out)
    oval = ovals(read_image(photos / "two.png").pixels).numpy()
    assert np.array_equal(after[oval < 0.5], before[oval < 0.5])
    for half in (slice(0, 512), slice(512, 1024)):
        change = np.where(oval[:, half] > 0.99, (after - before)[:, half].mean(2), np.nan)
        columns = np.where(oval[:, half].max(0) > 0.99)[0]
        left, right = change[:, columns[: len(columns) // 3]], change[:, columns[-(len(columns) // 3) :]]
        assert np.nanpercentile(left, 75) > 8 and np.nanpercentile(right, 25) < -8


def test_strength_and_prompt_reach_the_edit(photos, painter, tmp_path):
    before = array(photos / "one.png")
    changes = []
    for options in ([], ["--strength", "0.5"], ["--prompt", "x" * 50], ["--strength", "0"]):
        argv = [str(photos / "one.png"), str(tmp_path / "out.png"), *painter, *options, "--overwrite"]
        assert retouch_main(argv) == 0
        changes.append(np.abs(array(tmp_path / "out.png") - before).mean())
    whole, half, prompted, none = changes
    assert whole > 0.2 and abs(half / whole - 0.5) < 0.1 and abs(prompted / whole - 0.5) < 0.1 and none == 0


def test_a_folder_goes_on_and_fails_at_the_end(photos, painter, tmp_path, monkeypatch, capsys):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (photos / "notes.txt").write_text("not a photo")
    out = tmp_path / "out"
    assert run(monkeypatch, photos, out, *painter) == 2
    printed = capsys.readouterr()
    assert sorted(path.name for path in out.iterdir()) == ["one.png", "two.png"]
    assert f"{out / 'one.png'}: 1 face retouched" in printed.out and "2 faces retouched" in printed.out
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "broken.jpg: cannot be read" in errors[0] and "nobody.png: no face found" in errors[1]
    assert "2 of 4 photos could not be retouched" in printed.err


def test_a_folder_of_good_photos_exits_with_0(photos, painter, tmp_path, monkeypatch):
    (photos / "nobody.png").unlink()
    assert run(monkeypatch, photos, tmp_path / "out", *painter) == 0


def test_no_face(photos, painter, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, photos / "nobody.png", tmp_path / "out" / "a.png", *painter) == 2
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(FaceError, match="no face found"):
        retouch_main([str(photos / "nobody.png"), str(tmp_path / "out"), *painter])


def test_small_faces_are_left_and_named(photos, painter, tmp_path, capsys):
    assert retouch_main([str(photos / "two.png"), str(tmp_path / "out.png"), *painter, "--min-face", "150"]) == 0
    printed = capsys.readouterr().out
    assert "1 face retouched" in printed and "left as it is: face at (17" in printed
    assert "below --min-face 150" in printed
    before, after = array(photos / "two.png"), array(tmp_path / "out.png")
    assert np.array_equal(before[:, :512], after[:, :512]) and not np.array_equal(before[:, 512:], after[:, 512:])
    with pytest.raises(FaceError, match=r"one\.png: face of 1\d\d px: at least 150 needed"):
        retouch_main([str(photos / "one.png"), str(tmp_path / "small.png"), *painter, "--min-face", "150"])


def test_a_picture_that_only_looks_like_a_face(portraits, monkeypatch):
    monkeypatch.setattr("policies.retoucher.retouch.faces.MIN_SCORE", 1.01)
    with pytest.raises(FaceError, match=r"landmark score 1\.00, below 1\.01"):
        find_faces(portraits["astronaut"])


@pytest.mark.parametrize("orientation", [3, 6])
def test_exif_orientation_and_tags(photos, painter, tmp_path, portraits, orientation):
    turn = {3: PilImage.Transpose.ROTATE_180, 6: PilImage.Transpose.ROTATE_90}[orientation]
    exif = PilImage.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    with PilImage.open(photos / "one.png") as upright:
        upright.transpose(turn).save(tmp_path / "turned.png", exif=exif)
        upright.transpose(turn).save(tmp_path / "turned.jpg", exif=exif, quality=95, icc_profile=b"no profile" * 20)
    for suffix in (".png", ".jpg"):
        assert retouch_main([str(tmp_path / f"turned{suffix}"), str(tmp_path / f"out{suffix}"), *painter]) == 0
        with PilImage.open(tmp_path / f"out{suffix}") as result:
            assert result.size == (512, 512) and result.getexif()[0x010F] == "Maker"
            assert result.getexif()[0x0112] == 1
            assert suffix == ".png" or result.info["icc_profile"] == b"no profile" * 20
    oval = ovals(portraits["astronaut"]).numpy()
    assert np.array_equal(array(tmp_path / "out.png")[oval < 0.5], array(photos / "one.png")[oval < 0.5])
    assert np.abs(array(tmp_path / "out.jpg") - array(photos / "one.png"))[oval < 0.5].mean() < 3


def test_random_weights_retouch_each_face_alike(portraits, backbone):
    """The real architecture: the same seed gives the same picture, and a face does not depend on who stands beside it."""

    def retouch(pixels, seed=0):
        plans = take_apart(pixels, find_faces(pixels), backbone, prompt="", num_steps=2, seed=seed)
        return apply_controls(pixels, plans, Controls(tone=1.0, strength=0.3))

    alone = retouch(portraits["astronaut"])
    assert torch.equal(alone.pixels, retouch(portraits["astronaut"]).pixels)
    assert alone.faces == 1 and not torch.equal(alone.pixels, portraits["astronaut"])
    assert not torch.equal(alone.pixels, retouch(portraits["astronaut"], seed=1).pixels)
    together = retouch(both(portraits))
    change = (together.pixels - both(portraits))[:, :, :512]
    expected = alone.pixels - portraits["astronaut"]
    assert together.faces == 2
    assert (change - expected).norm() < 0.2 * expected.norm()  # the mesh moves a little with the frame


def test_a_small_photo(portraits, painter, tmp_path):
    small = resize(portraits["grace_hopper"], (150, 128))
    write_image(tmp_path / "small.png", small)
    assert retouch_main([str(tmp_path / "small.png"), str(tmp_path / "out.png"), *painter]) == 0
    change = array(tmp_path / "out.png") - array(tmp_path / "small.png")
    assert np.percentile(np.abs(change), 99) > 12 and (change == 0).mean() > 0.85


def test_model_folder_and_adapter(photos, tmp_path, monkeypatch, capsys):
    tiny_kontext.build_pipeline(0).save_pretrained(tmp_path / "model")
    options = ["--model", tmp_path / "model", "--num-steps", 2]
    assert run(monkeypatch, photos / "one.png", tmp_path / "base.png", *options) == 0
    capsys.readouterr()
    assert run(monkeypatch, photos / "one.png", tmp_path / "out.png", *options, "--adapter", tmp_path / "model") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "no LoRA there" in error
    assert not (tmp_path / "out.png").exists()


def test_the_embedded_retoucher_has_an_adapter_of_its_own(photos, tmp_path, monkeypatch):
    def retouched(name, *options):
        assert run(monkeypatch, photos / "one.png", tmp_path / name, *options) == 0
        return array(tmp_path / name)

    own = retouched("own.png")
    assert np.array_equal(own, retouched("named.png", "--adapter", ALIGNED, "--num-steps", EMBEDDED_STEPS))
    assert not np.array_equal(own, retouched("base.png", "--adapter", "none"))
    assert (ALIGNED / FILE).stat().st_size < 3e6
    recipe = json.loads((ALIGNED / "recipe.json").read_text())
    assert recipe["sha256"] == hashlib.sha256((ALIGNED / FILE).read_bytes()).hexdigest()
    weights = EMBEDDED / "transformer/diffusion_pytorch_model.safetensors"
    assert recipe["base_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest(), "the adapter belongs to other weights: align it again"


def test_other_models_have_no_adapter_unless_one_is_given():
    places = {"source": Path("in.png"), "target": Path("out.png")}
    assert RetouchConfig(**places).lora == ALIGNED
    assert RetouchConfig(**places, adapter="none").lora is None
    assert RetouchConfig(**places, model="my/weights").lora is None
    assert RetouchConfig(**places, backbone="flux_kontext").lora is None
    assert RetouchConfig(**places, backbone="flux_kontext", adapter="runs/demo").lora == Path("runs/demo")


def test_one_step_is_the_embedded_retouchers_alone():
    def steps(*options):
        return load_config(RetouchConfig, ["in.png", "out.png", *options], prog="retouch-portrait").num_steps

    assert steps() == steps("--adapter", "none") == EMBEDDED_STEPS == 1 and steps("--num-steps", "5") == 5
    assert steps("--model", "my/weights") == 8 and steps("--backbone", "flux_kontext") == 28


def test_targets(photos, tmp_path):
    one, out = photos / "one.png", tmp_path / "out"
    assert plan_jobs(one, out) == [(one, out / "one.png")]
    assert plan_jobs(one, tmp_path) == [(one, tmp_path / "one.png")]
    assert plan_jobs(one, tmp_path / "x.JPG") == [(one, tmp_path / "x.JPG")]
    assert plan_jobs(photos, out) == [(photos / name, out / name) for name in ("nobody.png", "one.png", "two.png")]
    (photos / "one.gif").write_bytes(b"GIF89a")
    assert plan_jobs(photos / "one.gif", out) == [(photos / "one.gif", out / "one.png")]
    with pytest.raises(ConfigError, match=r"one\.gif and one\.png would both become it"):
        plan_jobs(photos, out)


def test_refused_targets(photos, tmp_path):
    one, two = photos / "one.png", photos / "two.png"
    (tmp_path / "link.png").hardlink_to(one)
    (tmp_path / "soft.png").symlink_to(one)
    for target in (one, photos, photos / ".." / "photos" / "one.png", tmp_path / "link.png", tmp_path / "soft.png"):
        with pytest.raises(ConfigError, match="is the photo itself"):
            plan_jobs(one, target, overwrite=True)
    with pytest.raises(ConfigError, match="is the photo itself"):
        plan_jobs(photos, photos, overwrite=True)
    with pytest.raises(ConfigError, match=r"two\.png: exists already; add --overwrite"):
        plan_jobs(one, two)
    assert plan_jobs(one, two, overwrite=True) == [(one, two)]
    (tmp_path / "out").mkdir()
    for name in ("one.png", "two.png"):
        (tmp_path / "out" / name).touch()
    with pytest.raises(ConfigError, match=r"one\.png and 1 more: exists already"):
        plan_jobs(photos, tmp_path / "out")
    with pytest.raises(ConfigError, match="is a file, but IN"):
        plan_jobs(photos, tmp_path / "link.png")
    with pytest.raises(ConfigError, match=r"cannot write \.psd; use \.png"):
        plan_jobs(one, tmp_path / "a.psd")
    with pytest.raises(ImageError, match="no such file; give a photo, or a folder"):
        plan_jobs(tmp_path / "nothing.png", two)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no photos in this folder"):
        plan_jobs(tmp_path / "empty", tmp_path / "out")


def test_a_folder_that_must_not_be_written_in_is_told_once_and_first(photos, tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "locked")  # root may write anywhere, and tests may run as root
    for target in (tmp_path / "locked", tmp_path / "locked" / "new" / "folder"):
        with pytest.raises(ConfigError, match=rf"nothing can be written in {tmp_path / 'locked'}; give another place"):
            retouch_main([str(photos), str(target)])
    assert list((tmp_path / "locked").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strength", "1.5"], r"--strength 1\.5: must be in \[0, 1\]"),
        (["--num-steps", "0"], "--num-steps 0: must be 1 or more"),
        (["--min-face", "0"], "--min-face 0: at least 1"),
        (["--strenght", "1"], "unknown option --strenght; did you mean"),
        (["--backbone", "tinny"], "backbone 'tinny' is unknown"),
        (["--device", "abacus"], "--device abacus: not available here"),
    ],
)
def test_impossible_values(photos, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        retouch_main([str(photos / "one.png"), str(tmp_path / "out.png"), *options])


def test_an_output_folder_that_cannot_be_made(photos, painter, tmp_path):
    with pytest.raises(ConfigError, match="cannot be made a folder"):
        retouch_main([str(photos / "one.png"), str(photos / "two.png" / "out" / "a.png"), *painter])


def test_the_embedded_retoucher(photos, tmp_path):
    """The trained weights: blemish-free skin is changed a little, and the photo stays a portrait of the same sharpness."""
    if not (tiny.EMBEDDED / "model_index.json").is_file():
        pytest.skip("the embedded weights are not there: make embedded")
    try:
        assert retouch_main([str(photos / "two.png"), str(tmp_path / "out.png")]) == 0
    except WeightsError as error:
        pytest.fail(str(error))
    before, after = read_image(photos / "two.png").pixels, read_image(tmp_path / "out.png").pixels
    oval = ovals(before)
    change = (after - before).abs().mean(0)
    assert torch.equal(after[:, oval < 0.5], before[:, oval < 0.5])
    assert 0.001 < change[oval > 0.99].mean() < 0.05
    fine = [(image - torch.nn.functional.avg_pool2d(image, 3, 1, 1))[:, oval > 0.99].std() for image in (before, after)]
    assert 0.9 < fine[1] / fine[0] < 1.1
