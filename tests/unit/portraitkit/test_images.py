import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image as PilImage
from PIL import ImageCms, ImageOps

from portraitkit.errors import ImageError
from portraitkit.pictures.images import from_uint8, image_size, read_image, resize, to_uint8, unit, write_image

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def flat(colour: tuple[int, ...], mode: str = "RGB", size: tuple[int, int] = (32, 24)) -> PilImage.Image:
    return PilImage.new(mode, size, colour)


def saved(path: Path, picture: PilImage.Image, **options) -> Path:
    picture.save(path, **options)
    return path


def png(path: Path, width: int, height: int, depth: int, colour: int, rows: bytes) -> Path:
    """A PNG by hand: Pillow cannot write some kinds, and a header may lie about the size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def swapped_profile() -> bytes:
    """SRGB with the primaries of red and green exchanged: pixels need their first two channels swapped."""
    return SRGB.replace(b"rXYZ", b"temp").replace(b"gXYZ", b"rXYZ").replace(b"temp", b"gXYZ")


def linear_profile() -> bytes:
    """SRGB's primaries with a gamma of 1, under a name that still says sRGB."""
    profile, at = bytearray(SRGB), SRGB.index(b"para")
    profile[at : at + 16] = b"para" + struct.pack(">IHHi", 0, 0, 0, 65536)
    return bytes(profile)


def cmyk_profile() -> bytes:
    """A printer profile with two grid points an ink: paper is Lab (100, 0, 0), full black 0, each ink alone has its colour."""
    table = []
    for corner in range(16):
        c, m, y, k = (corner >> 3 & 1, corner >> 2 & 1, corner >> 1 & 1, corner & 1)
        lightness = 0 if k else 100 - 25 * (c + m + y)
        table += [round(lightness * 2.55), 128 + (0 if k else 60 * m - 40 * c), 128 + (0 if k else 60 * y - 40 * c)]
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    ramp = bytes(range(256))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + bytes(table) + ramp * 3
    text = "press".encode("utf-16-be")
    name = b"mluc\0\0\0\0" + struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", len(text), 28) + text
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    tags = [(b"desc", name), (b"wtpt", white), (b"A2B0", lut)]
    index, data, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for signature, value in tags:
        value += b"\0" * (-len(value) % 4)
        index += signature + struct.pack(">II", offset + len(data), len(value))
        data += value
    body = struct.pack(">I", len(tags)) + index + data
    header = struct.pack(">I4sI4s4s4s", 128 + len(body), b"lcms", 0x04200000, b"prtr", b"CMYK", b"Lab ")
    header += b"\0" * 12 + b"acsp" + b"\0" * 28 + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + body


def test_an_8_bit_png_is_read_exactly(tmp_path: Path):
    image = read_image(saved(tmp_path / "a.png", PilImage.fromarray(NOISE)))
    assert image.pixels.dtype == torch.float32 and image.pixels.shape == (3, 24, 32) and image.pixels.is_contiguous()
    assert torch.equal(image.pixels, from_uint8(NOISE))
    assert np.array_equal(image.pixels.permute(1, 2, 0).numpy(), NOISE.astype(np.float32) / 255)
    assert np.array_equal(to_uint8(image.pixels), NOISE)
    assert (image.exif, image.icc, image.warnings) == (None, None, ())
    assert image.path == tmp_path / "a.png"


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA"])
def test_a_lean_picture_keeps_its_bytes_and_is_the_same(tmp_path: Path, mode: str):
    path = saved(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), PilImage.fromarray(NOISE).convert(mode))
    lean, plain = read_image(path, lean=True).pixels, read_image(path).pixels
    assert lean.dtype == (torch.float32 if mode == "RGBA" else torch.uint8) and torch.equal(unit(lean), plain)
    for size in ((24, 32), (7, 50), (30, 11)):
        assert torch.equal(resize(lean, size), resize(plain, size))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(tmp_path: Path, orientation: int, suffix: str):
    corners = np.zeros((24, 32, 3), dtype=np.uint8)
    corners[:12, :16], corners[:12, 16:], corners[12:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    stored = PilImage.fromarray(corners)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    if orientation > 1:
        stored = stored.transpose(PilImage.Transpose(undo[orientation]))
    exif = PilImage.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Camera"
    options = {".jpg": {"quality": 95, "subsampling": 0}, ".webp": {"lossless": True}}.get(suffix, {})
    image = read_image(saved(tmp_path / f"a{suffix}", stored, exif=exif, **options))
    assert image.pixels.shape == (3, 24, 32)
    assert np.abs(to_uint8(image.pixels)[4::16, 4::24].astype(int) - corners[4::16, 4::24]).max() <= 3

    write_image(tmp_path / "again.jpg", image.pixels, exif=image.exif)
    with PilImage.open(tmp_path / "again.jpg") as again:
        assert again.getexif().get(0x0112, 1) == 1 and again.getexif()[0x010F] == "Camera"
        assert ImageOps.exif_transpose(again).size == (32, 24)
    assert read_image(tmp_path / "again.jpg").pixels.shape == (3, 24, 32)


def test_broken_exif_does_not_hide_the_picture(tmp_path: Path):
    path = saved(tmp_path / "a.jpg", PilImage.fromarray(NOISE), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage")
    assert read_image(path).pixels.shape == (3, 24, 32)


def test_cmyk_without_a_profile(tmp_path: Path):
    image = read_image(saved(tmp_path / "a.jpg", flat((0, 255, 255, 0), "CMYK"), quality=100))
    assert torch.allclose(image.pixels.mean((1, 2)), torch.tensor([1.0, 0.0, 0.0]), atol=0.02)


@pytest.mark.parametrize(
    "ink, lab",
    [((0, 0, 0, 0), (100, 0, 0)), ((0, 255, 0, 0), (75, 60, 0)), ((0, 0, 255, 0), (75, 0, 60)), ((0, 0, 0, 255), (0, 0, 0))],
)
def test_cmyk_goes_through_its_profile(tmp_path: Path, ink: tuple[int, ...], lab: tuple[int, int, int]):
    import skimage.color

    path = saved(tmp_path / "a.jpg", flat(ink, "CMYK"), quality=100, icc_profile=cmyk_profile())
    image = read_image(path)
    expected = torch.from_numpy(skimage.color.lab2rgb(np.array(lab, dtype=float))).float().clamp(0, 1)
    assert torch.allclose(image.pixels.mean((1, 2)), expected, atol=0.03)
    assert image.icc is None and image.warnings == ()


def test_an_rgb_profile_is_applied(tmp_path: Path):
    path = saved(tmp_path / "a.png", flat((200, 40, 90)), icc_profile=swapped_profile())
    assert np.abs(to_uint8(read_image(path).pixels)[0, 0].astype(int) - (40, 200, 90)).max() <= 1


def test_a_linear_profile_that_calls_itself_srgb_is_applied(tmp_path: Path):
    path = saved(tmp_path / "a.png", flat((128, 128, 128)), icc_profile=linear_profile())
    assert read_image(path).pixels.mean().item() == pytest.approx(0.736, abs=0.01)


def test_an_srgb_profile_changes_nothing(tmp_path: Path):
    path = saved(tmp_path / "a.png", PilImage.fromarray(NOISE), icc_profile=SRGB)
    image = read_image(path)
    assert np.array_equal(to_uint8(image.pixels), NOISE) and image.icc is None


@pytest.mark.parametrize("profile", [b"this is no profile" * 20, cmyk_profile()])
def test_a_profile_that_does_not_fit_is_named(tmp_path: Path, profile: bytes):
    image = read_image(saved(tmp_path / "a.png", PilImage.fromarray(NOISE), icc_profile=profile))
    assert np.array_equal(to_uint8(image.pixels), NOISE)
    assert len(image.warnings) == 1 and "profile" in image.warnings[0]


def test_alpha_lies_on_the_declared_background(tmp_path: Path):
    picture = flat((255, 0, 0, 51), "RGBA")
    path = saved(tmp_path / "a.png", picture)
    assert torch.allclose(read_image(path).pixels[:, 0, 0], torch.tensor([1.0, 0.8, 0.8]), atol=1e-6)
    on_blue = read_image(path, background=(0.0, 0.0, 1.0)).pixels
    assert torch.allclose(on_blue[:, 0, 0], torch.tensor([0.2, 0.0, 0.8]), atol=1e-6)
    grey = saved(tmp_path / "b.png", flat((102, 51), "LA"))
    assert torch.allclose(read_image(grey).pixels[:, 0, 0], torch.full((3,), 0.4 * 0.2 + 0.8), atol=1e-6)


def test_opaque_alpha_is_exact(tmp_path: Path):
    picture = PilImage.fromarray(NOISE).convert("RGBA")
    assert torch.equal(read_image(saved(tmp_path / "a.png", picture)).pixels, from_uint8(NOISE))


def test_palette_with_and_without_transparency(tmp_path: Path):
    picture = PilImage.new("P", (32, 24), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30, 200, 100, 50])
    assert to_uint8(read_image(saved(tmp_path / "a.png", picture)).pixels)[0, 0].tolist() == [10, 20, 30]
    clear = read_image(saved(tmp_path / "b.png", picture, transparency=1), background=(0.0, 1.0, 0.0))
    assert clear.pixels[:, 0, 0].tolist() == [0, 1, 0]
    half = read_image(saved(tmp_path / "c.png", picture, transparency=bytes([255, 51, 255])))
    assert torch.allclose(half.pixels[:, 0, 0], torch.tensor([10, 20, 30]) / 255 * 0.2 + 0.8, atol=1e-6)


def test_1_bit_and_greyscale(tmp_path: Path):
    bits = PilImage.fromarray(NOISE[..., 0] > 127).convert("1")
    image = read_image(saved(tmp_path / "a.png", bits))
    assert torch.equal(image.pixels[0], torch.from_numpy(NOISE[..., 0] > 127).float())
    grey = read_image(saved(tmp_path / "b.png", PilImage.fromarray(NOISE[..., 0])))
    assert torch.equal(grey.pixels, from_uint8(np.repeat(NOISE[..., :1], 3, axis=-1)))


def test_16_bit_is_scaled_not_clipped(tmp_path: Path):
    ramp = np.linspace(0, 65535, 24 * 32).astype(np.uint16).reshape(24, 32)
    expected = torch.from_numpy(ramp.astype(np.float32) / 65535)
    for name in ("a.png", "a.tif"):
        image = read_image(saved(tmp_path / name, PilImage.fromarray(ramp)))
        assert torch.allclose(image.pixels, expected.expand(3, -1, -1), atol=1e-6), name
    dark = read_image(saved(tmp_path / "dark.png", PilImage.fromarray((ramp // 512).astype(np.uint16))))
    assert dark.pixels.max() < 0.002


def test_16_bit_colour_png_is_scaled(tmp_path: Path):
    values = RNG.integers(0, 65536, (24, 32, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    image = read_image(png(tmp_path / "a.png", 32, 24, 16, 2, rows))
    expected = torch.from_numpy(values.astype(np.float32) / 65535).permute(2, 0, 1)
    assert (image.pixels - expected).abs().max() <= 1 / 255


def test_32_bit_integers_are_scaled(tmp_path: Path):
    values = np.linspace(0, 2**31 - 1, 24 * 32).astype(np.int32).reshape(24, 32)
    tifffile.imwrite(tmp_path / "a.tif", values)
    image = read_image(tmp_path / "a.tif")
    assert torch.allclose(image.pixels[0].flatten(), torch.linspace(0, 1, 24 * 32), atol=1e-5)
    assert "scaled" in image.warnings[0]


def test_float_tiff(tmp_path: Path):
    ramp = np.linspace(0, 1, 24 * 32, dtype=np.float32).reshape(24, 32)
    tifffile.imwrite(tmp_path / "a.tif", ramp)
    image = read_image(tmp_path / "a.tif")
    assert torch.equal(image.pixels[1], torch.from_numpy(ramp)) and image.warnings == ()
    tifffile.imwrite(tmp_path / "b.tif", ramp * 300 - 100)
    wide = read_image(tmp_path / "b.tif")
    assert torch.allclose(wide.pixels[2], torch.from_numpy(ramp), atol=1e-5) and "scaled" in wide.warnings[0]


def test_float_tiff_with_nan_and_infinity_keeps_its_range(tmp_path: Path):
    ramp = np.linspace(0, 1, 24 * 32, dtype=np.float32).reshape(24, 32)
    ramp[0, 1], ramp[0, 2], ramp[0, 3] = np.nan, np.inf, -np.inf
    tifffile.imwrite(tmp_path / "a.tif", ramp)
    image = read_image(tmp_path / "a.tif")
    assert torch.allclose(image.pixels[0, 1:], torch.from_numpy(ramp[1:]), atol=1e-6)
    assert image.pixels[0, 0, 1:4].tolist() == [0, 1, 0]
    assert "3 values" in image.warnings[0]


@pytest.mark.parametrize("suffix", [".gif", ".tif", ".webp"])
def test_animated_gives_the_first_frame_and_a_warning(tmp_path: Path, suffix: str):
    frames = [flat((250, 0, 0)), flat((0, 250, 0)), flat((0, 0, 250))]
    options = {"lossless": True} if suffix == ".webp" else {}
    image = read_image(saved(tmp_path / f"a{suffix}", frames[0], save_all=True, append_images=frames[1:], **options))
    assert to_uint8(image.pixels)[5, 5].tolist() == [250, 0, 0]
    assert image.warnings == (f"{tmp_path / f'a{suffix}'}: 3 frames, only the first is used",)


def refused(path: Path, *words: str, **limits) -> str:
    with pytest.raises(ImageError) as error:
        read_image(path, **limits)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    for word in words:
        assert word in message, message
    return message


@pytest.mark.parametrize("share", [0.3, 0.7, 0.97])
def test_truncated_jpeg_is_refused(tmp_path: Path, share: float):
    path = saved(tmp_path / "a.jpg", PilImage.fromarray(RNG.integers(0, 256, (96, 96, 3), dtype=np.uint8)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path, "cannot be read", "truncated", "convert it")


@pytest.mark.parametrize("content", [b"", b"just some text\n", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    refused(path, "cannot be read")


def test_a_tiff_whose_planes_pillow_takes_for_8_bits_is_refused(tmp_path: Path):
    """It gave the left half twice, in silence; 8 bits in planes and 16 without are read."""
    planes, kind = np.moveaxis(NOISE, -1, 0), {"photometric": "rgb", "planarconfig": "separate"}
    tifffile.imwrite(tmp_path / "a.tif", planes.astype(np.uint16) * 257, **kind)
    refused(tmp_path / "a.tif", "more than 8 bits in separate planes", "convert it")
    tifffile.imwrite(tmp_path / "b.tif", planes, **kind)
    tifffile.imwrite(tmp_path / "c.tif", NOISE.astype(np.uint16) * 257, photometric="rgb")
    for name in ("b.tif", "c.tif"):
        assert torch.equal(read_image(tmp_path / name).pixels, from_uint8(NOISE))


def test_a_page_of_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pillow hands it to Ghostscript, whatever its name says."""
    PilImage.fromarray(NOISE).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    refused(tmp_path / "a.png", "cannot be read")
    with pytest.raises(ImageError):
        image_size(tmp_path / "a.png")


@pytest.mark.parametrize("read", [read_image, image_size])
def test_what_is_no_file_is_told_as_what_it_is(tmp_path: Path, read):
    """A pipe was "no such file", and its size was waited for."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to(os.devnull)
    (tmp_path / "link.png").symlink_to(tmp_path / "none.png")
    (tmp_path / "folder.png").mkdir()
    for name, said in (
        ("pipe", "is a pipe"),
        ("device", "a device"),
        ("folder", "is a folder"),
        ("link", "a link to nothing"),
        ("none", "no such file"),
    ):
        with pytest.raises(ImageError, match=rf"{name}\.png: .*{said}.*; one picture is needed"):
            read(tmp_path / f"{name}.png")


@pytest.mark.parametrize("size", [(12_000, 12_000), (30_000, 30_000), (2**30, 2**30)])
def test_a_declared_bomb_is_refused_before_decoding(tmp_path: Path, size: tuple[int, int]):
    path = png(tmp_path / "a.png", *size, 8, 2, b"")
    refused(path, f"{size[0]}x{size[1]}" if size[0] == 12_000 else "million pixels", "at most 120 million", "smaller")


def test_a_bomb_costs_no_memory(tmp_path: Path):
    png(tmp_path / "a.png", 13_000, 13_000, 8, 2, b"\0" * 13_000 * 3 * 100)
    code = """
import resource, sys
from portraitkit.errors import ImageError
from portraitkit.pictures.images import read_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_image(sys.argv[1])
except ImageError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True, timeout=120)
    assert int(done.stdout) < 50 * 1024, done.stderr


def test_impossible_shapes_are_refused(tmp_path: Path):
    refused(saved(tmp_path / "thin.png", PilImage.new("L", (1, 100_000))), "1x100000", "factor of 100", "crop")
    refused(saved(tmp_path / "wide.png", PilImage.new("L", (301, 3))), "301x3")
    assert read_image(saved(tmp_path / "edge.png", PilImage.new("L", (300, 3)))).pixels.shape == (3, 3, 300)
    refused(png(tmp_path / "none.png", 0, 0, 8, 2, b""))
    refused(png(tmp_path / "flat.png", 10, 0, 8, 2, b""))
    refused(tmp_path / "edge.png", "300x3", max_pixels=899)


def test_a_file_over_the_limit_is_refused_before_opening(tmp_path: Path):
    path = tmp_path / "a.png"
    path.touch()
    os.truncate(path, 200 * 2**20 + 1)
    refused(path, "209,715,201 bytes", "at most 209,715,200", "smaller")
    small = saved(tmp_path / "b.png", PilImage.fromarray(NOISE))
    read_image(small, max_bytes=small.stat().st_size)
    refused(small, "bytes", max_bytes=small.stat().st_size - 1)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif", ".tif", ".bmp"])
def test_damaged_files_give_a_picture_or_an_image_error(tmp_path: Path, suffix: str):
    exif = PilImage.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"
    options = {} if suffix in (".gif", ".bmp") else {"exif": exif, "icc_profile": swapped_profile()}
    path = saved(tmp_path / f"a{suffix}", PilImage.fromarray(NOISE), **options)
    whole, rng, read = path.read_bytes(), np.random.default_rng(1), 0
    for _ in range(150):
        damaged = bytearray(whole)
        limit = len(damaged) if rng.random() < 0.5 else min(len(damaged), 300)
        for at in rng.integers(0, limit, rng.integers(1, 8)):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            pixels = read_image(path, max_pixels=10**6).pixels
        except ImageError as error:
            assert "\n" not in str(error)
        else:
            read += 1
            assert pixels.isfinite().all() and pixels.min() >= 0 and pixels.max() <= 1
    assert read < 150


def test_bytes_of_a_ycck_jpeg_read_as_cmyk(tmp_path: Path):
    """Adobe's YCCK is CMYK whose first three channels are YCbCr: the transform flag of the APP14 segment says so."""
    buffer = io.BytesIO()
    flat((128, 128, 128, 0), "CMYK").save(buffer, "JPEG", quality=100)
    content = bytearray(buffer.getvalue())
    at = content.index(b"Adobe") + 11
    assert content[at] == 0
    content[at] = 2
    (tmp_path / "a.jpg").write_bytes(content)
    image = read_image(tmp_path / "a.jpg")
    assert torch.allclose(image.pixels.mean((1, 2)), torch.full((3,), 0.5), atol=0.02)
