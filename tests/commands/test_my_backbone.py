"""docs/examples/my_backbone.py: the skeleton is aligned and used as it stands, and a part that is missing is named."""

import json
from pathlib import Path

import pytest

from policies.retoucher.backbones import load_backbone
from policies.retoucher.main import align_retoucher, retouch_portrait
from policies.retoucher.model.adapter import read_adapter
from portraitkit.errors import ConfigError
from portraitkit.faces.portraits import bundled_portraits
from portraitkit.pictures.images import read_image, write_image

SKELETON = Path(__file__).parents[2] / "docs" / "examples" / "my_backbone.py"
SMALL = ["--photos-per-step", 1, "--group-size", 2, "--max-train-steps", 1, "--validation-photos", 1, "--held-out-photos", 2]


def test_it_is_aligned_and_its_lora_retouches(command, tmp_path):
    where = f"{SKELETON}:BACKBONE"
    options = [*SMALL, "--warmup-steps", 0, "--num-steps", 2, "--segments", 1, "--rank", 4, "--lora-alpha", 8]
    code, _, err = command(align_retoucher, "--backbone", where, "--device", "cpu", *options, "--output-dir", tmp_path / "run")
    assert code == 0, err
    (step,) = [row for row in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) if "ratio_deviation" in row]
    assert step["ratio_deviation"] == 0 and step["gradient_norm"] > 0
    assert read_adapter(tmp_path / "run").settings["lora_alpha"] == 8

    photo = bundled_portraits()["astronaut"]
    write_image(tmp_path / "photo.png", photo)
    options = ["--backbone", where, "--device", "cpu", "--adapter", tmp_path / "run"]
    code, _, err = command(retouch_portrait, tmp_path / "photo.png", tmp_path / "out.png", *options)
    assert code == 0, err
    change = (read_image(tmp_path / "out.png").pixels - photo).abs()
    assert 0 < change.mean() < 0.05


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("def encoding_key", "def cache_key", "MyBackbone lacks encoding_key;"),
        ("class Network(nn.Module, PeftAdapterMixin)", "class Network(nn.Module)", "lacks transformer.add_adapter, transformer.disable"),
        ("return MyBackbone(", "MyBackbone(", "NoneType lacks name, resolution, transformer, lora_targets,"),
    ],
)
def test_a_part_that_is_missing_is_named(tmp_path, old, new, said):
    text = SKELETON.read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "mine.py").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        load_backbone(f"{tmp_path / 'mine.py'}:BACKBONE", None, None, "cpu")
