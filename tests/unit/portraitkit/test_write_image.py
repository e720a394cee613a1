import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from PIL import ImageCms

from portraitkit.errors import ImageError
from portraitkit.pictures import list_images
from portraitkit.pictures.images import from_pil, from_uint8, read_image, resize, to_pil, to_uint8, write_image

NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff"])
def test_lossless_formats_round_trip(tmp_path: Path, suffix: str):
    write_image(tmp_path / f"a{suffix}", from_uint8(NOISE))
    assert np.array_equal(to_uint8(read_image(tmp_path / f"a{suffix}").pixels), NOISE)
    write_image(tmp_path / f"b{suffix}", NOISE)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp"])
def test_lossy_formats_obey_quality(tmp_path: Path, suffix: str):
    smooth = resize(from_uint8(NOISE[:3, :4]), (96, 128))
    sizes = []
    for quality in (40, 95):
        write_image(tmp_path / f"a{suffix}", smooth, quality=quality)
        sizes.append((tmp_path / f"a{suffix}").stat().st_size)
    assert sizes[0] < sizes[1]
    assert (read_image(tmp_path / f"a{suffix}").pixels - smooth).abs().mean() < 0.02


def test_profile_is_embedded(tmp_path: Path):
    write_image(tmp_path / "a.png", from_uint8(NOISE), icc=SRGB)
    with PilImage.open(tmp_path / "a.png") as picture:
        assert picture.info["icc_profile"] == SRGB


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    write_image(tmp_path / "a.webp", from_uint8(NOISE))
    before = (tmp_path / "a.webp").read_bytes()
    with pytest.raises(ImageError, match="could not be written"):
        write_image(tmp_path / "a.webp", torch.zeros(3, 1, 20_000))
    assert (tmp_path / "a.webp").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.webp"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path):
    write_image(tmp_path / "a.bmp", from_uint8(NOISE))
    before = (tmp_path / "a.bmp").read_bytes()
    code = """
import resource, sys
import torch
from portraitkit.errors import ImageError
from portraitkit.pictures.images import write_image
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_image(sys.argv[1], torch.zeros(3, 200, 200))
except ImageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.bmp"], capture_output=True, text=True, timeout=120)
    assert "could not be written" in done.stdout, done.stderr
    assert (tmp_path / "a.bmp").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.bmp"]


def test_write_refuses_unknown_suffix_and_missing_folder(tmp_path: Path):
    with pytest.raises(ImageError, match=r"cannot write \.xyz"):
        write_image(tmp_path / "a.xyz", from_uint8(NOISE))
    with pytest.raises(ImageError, match="without suffix"):
        write_image(tmp_path / "a", from_uint8(NOISE))
    with pytest.raises(ImageError, match="check its size, the folder"):
        write_image(tmp_path / "none" / "a.png", from_uint8(NOISE))
    assert os.listdir(tmp_path) == []


def test_conversions():
    assert torch.equal(from_pil(to_pil(from_uint8(NOISE))), from_uint8(NOISE))
    every = torch.arange(256, dtype=torch.uint8).view(16, 16, 1).repeat(1, 1, 3).numpy()
    assert np.array_equal(to_uint8(from_uint8(every)), every)
    pixels = torch.tensor([-1.0, 0.4999 / 255, 0.5001 / 255, 2.0]).view(1, 1, 4).repeat(3, 1, 1).requires_grad_()
    assert to_uint8(pixels)[0, :, 0].tolist() == [0, 0, 1, 255]
    assert from_uint8(NOISE[::-1, ::-1]).shape == (3, 24, 32)


def test_resize():
    pixels = from_uint8(NOISE)
    assert resize(pixels, (24, 32)) is pixels
    small = resize(pixels, (6, 8))
    assert small.shape == (3, 6, 8) and (small - 0.5).abs().mean() < (pixels - 0.5).abs().mean()
    large = resize(torch.eye(4).expand(3, 4, 4), (64, 48))
    assert large.shape == (3, 64, 48) and large.min() >= 0 and large.max() <= 1
    assert torch.allclose(resize(torch.full((3, 10, 10), 0.3), (7, 5)), torch.full((3, 7, 5), 0.3), atol=1e-6)


def test_list_images(tmp_path: Path):
    for name in ("b.PNG", "a.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG"]
    with pytest.raises(ImageError, match="no such folder"):
        list_images(tmp_path / "none")
