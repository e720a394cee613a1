"""An edited picture keeps what its file has: samples, bit depth, alpha, profile and EXIF."""

import io
import struct

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image as PilImage
from PIL import ImageCms, ImageOps
from PIL.JpegImagePlugin import get_sampling

from portraitkit.errors import ImageError
from portraitkit.faces.portraits import bundled_portraits
from portraitkit.pictures.images import from_uint8, read_image, to_uint8
from portraitkit.pictures.stored import encode, read_stored, write_edited

HEIGHT, WIDTH = 24, 36
EDIT = 40 / 255
BOX = (slice(6, 16), slice(8, 20))  # rows and columns of the upright picture
ORIENTATION, MAKE, EXIF_IFD, DATE = 0x0112, 0x010F, 0x8769, 0x9003


def samples(channels, dtype=np.uint8, seed=0):
    top = np.iinfo(dtype).max
    picture = np.random.default_rng(seed).integers(top // 8, top // 2, (HEIGHT, WIDTH, channels), dtype=dtype)
    if channels in (2, 4):
        picture[..., -1] = top
        picture[:4, :4, -1] = top // 3
    return picture


def exif_block(orientation=1):
    exif = PilImage.Exif()
    exif[ORIENTATION], exif[MAKE] = orientation, "Maker"
    exif.get_ifd(EXIF_IFD)[DATE] = "2020:01:02 03:04:05"
    return exif


def edited(image):
    """The picture, brighter in a box; elsewhere the same."""
    pixels = image.pixels.clone()
    pixels[:, *BOX] += EDIT
    return pixels


def outside(height=HEIGHT, width=WIDTH):
    mask = np.ones((height, width), bool)
    mask[BOX] = False
    return mask


def array(path):
    with PilImage.open(path) as picture:
        return np.array(picture)


def check_exif(path):
    with PilImage.open(path) as picture:
        exif = picture.getexif()
        assert exif.get(ORIENTATION, 1) == 1
        assert exif[MAKE] == "Maker"
        assert exif.get_ifd(EXIF_IFD)[DATE] == "2020:01:02 03:04:05"


def wide_profile():
    """A profile whose primaries are not those of sRGB: sRGB's with its red and green columns exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {}
    for entry in range(struct.unpack(">I", data[128:132])[0]):
        start = 132 + 12 * entry
        tags[bytes(data[start : start + 4])] = struct.unpack(">II", data[start + 4 : start + 12])
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    one, other = (bytes(data[at : at + size]) for at, size in (red, green))
    data[red[0] : red[0] + red[1]], data[green[0] : green[0] + green[1]] = other, one
    offset, size = tags[b"desc"]
    data[offset : offset + size] = bytes(data[offset : offset + size]).replace(b"s\0R\0G\0B", b"o\0t\0h\0e").replace(b"sRGB", b"othe")
    return bytes(data)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".bmp"])
def test_rgb_is_kept_to_the_bit_outside_the_edit(tmp_path, suffix):
    source, target, picture = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}", samples(3)
    PilImage.fromarray(picture).save(source, **({"lossless": True} if suffix == ".webp" else {}))
    image = read_image(source)
    assert write_edited(image, edited(image), target) == ()
    result = array(target)
    assert np.array_equal(result[outside()], picture[outside()])
    assert np.array_equal(result[BOX], picture[BOX] + 40)
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize(("suffix", "mode"), [(".png", "RGB"), (".tif", "L"), (".png", "RGBA"), (".jpg", "RGB"), (".jpg", "CMYK")])
def test_changed_strips_of_a_lean_picture_write_the_same_file(tmp_path, suffix, mode):
    source = tmp_path / f"a{suffix}"
    PilImage.fromarray(samples(3)).convert(mode).save(source)
    image, lean = read_image(source), read_image(source, lean=True)
    whole, rows = edited(image), image.pixels.shape[1]
    strips = [(start, whole[:, start : start + 7]) for start in range(0, rows, 7)]
    touched = [(start, strip) for start, strip in strips if not torch.equal(strip, image.pixels[:, start : start + 7])]
    assert len(touched) < len(strips)
    assert write_edited(image, whole, tmp_path / f"b{suffix}") == write_edited(lean, iter(touched), tmp_path / f"b{suffix}")
    write_edited(image, whole, tmp_path / f"c{suffix}")
    assert (tmp_path / f"b{suffix}").read_bytes() == (tmp_path / f"c{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_alpha_is_kept(tmp_path, suffix):
    source, target, picture = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}", samples(4)
    PilImage.fromarray(picture).save(source, **({"lossless": True, "exact": True} if suffix == ".webp" else {}))
    image = read_image(source)
    assert write_edited(image, edited(image), target) == ()
    result = array(target)
    assert np.array_equal(result[..., 3], picture[..., 3])
    assert np.array_equal(result[outside()], picture[outside()])
    assert np.array_equal(result[BOX][..., :3], picture[BOX][..., :3] + 40)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 2])
def test_grey_stays_grey(tmp_path, suffix, channels):
    source, target, picture = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}", samples(channels)
    PilImage.fromarray(picture.squeeze()).save(source)
    image = read_image(source)
    assert write_edited(image, edited(image), target) == ()
    result = array(target).reshape(picture.shape)
    assert np.array_equal(result[outside()], picture[outside()])
    assert np.array_equal(result[BOX][..., 0], picture[BOX][..., 0] + 40)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_stay(tmp_path, suffix, channels):
    source, target, picture = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}", samples(channels, np.uint16)
    source.write_bytes(encode(suffix, picture, exif=exif_block().tobytes(), icc=None))
    image = read_image(source)
    assert write_edited(image, edited(image), target) == ()
    check_exif(target)
    stored, _ = read_stored(target)
    result = stored.samples
    assert result.dtype == np.uint16 and result.shape == picture.shape
    assert np.array_equal(result[outside()], picture[outside()])
    difference = result[BOX].astype(int) - picture[BOX]
    assert np.abs(difference[..., : min(channels, 3)] - EDIT * 65535).max() <= 1
    if channels == 4:
        assert (difference[..., 3] == 0).all()


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"byteorder": ">"}])
def test_sixteen_bit_tiff_of_other_programs(tmp_path, options):
    picture = samples(3, np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="rgb", **options)
    image = read_image(tmp_path / "a.tif")
    assert write_edited(image, edited(image), tmp_path / "b.tif") == ()
    result = tifffile.imread(tmp_path / "b.tif")
    assert np.array_equal(result[outside()], picture[outside()])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_output_is_upright(tmp_path, orientation, suffix, dtype):
    source, target, picture = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}", samples(3, dtype)
    source.write_bytes(encode(suffix, picture, exif=exif_block(orientation).tobytes(), icc=None))
    image = read_image(source)
    assert write_edited(image, edited(image), target) == ()
    check_exif(target)
    again = read_image(target)
    mask = torch.from_numpy(outside(*image.pixels.shape[1:]))
    assert again.pixels.shape == image.pixels.shape
    assert torch.equal(again.pixels[:, mask], image.pixels[:, mask])
    turned = PilImage.fromarray((picture // (257 if dtype == np.uint16 else 1)).astype(np.uint8))
    turned.getexif()[ORIENTATION] = orientation
    upright = from_uint8(np.array(ImageOps.exif_transpose(turned)))
    assert (again.pixels - upright)[:, mask].abs().max() < 2 / 255


def test_jpeg_keeps_exif_and_profile_and_most_of_the_rest(tmp_path):
    gradient = np.linspace(60, 160, HEIGHT * WIDTH * 3).reshape(HEIGHT, WIDTH, 3).astype(np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = exif_block(6)
    PilImage.fromarray(gradient).save(tmp_path / "a.jpg", quality=95, exif=exif, icc_profile=profile)
    image = read_image(tmp_path / "a.jpg")
    assert image.pixels.shape == (3, WIDTH, HEIGHT)
    assert write_edited(image, edited(image), tmp_path / "b.jpg") == ()
    check_exif(tmp_path / "b.jpg")
    with PilImage.open(tmp_path / "b.jpg") as result:
        assert result.format == "JPEG" and result.size == (HEIGHT, WIDTH)
        assert result.info["icc_profile"] == profile
    difference = (read_image(tmp_path / "b.jpg").pixels - edited(image)).abs()
    assert difference.mean() < 2 / 255


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("quality", "subsampling"), [(40, 2), (75, 0), (100, 0)])
def test_a_jpeg_keeps_its_quality(tmp_path, quality, subsampling, orientation):
    """By its own tables and subsampling: what has no edit is all but the same, and the file as large as it was."""
    picture = to_uint8(bundled_portraits()["astronaut"][:, 80:160, 150:262])
    PilImage.fromarray(picture).save(tmp_path / "a.jpg", quality=quality, subsampling=subsampling, exif=exif_block(orientation))
    image, terms = read_image(tmp_path / "a.jpg"), []
    assert write_edited(image, image.pixels, tmp_path / "b.jpg") == ()
    for name in ("a.jpg", "b.jpg"):
        with PilImage.open(tmp_path / name) as opened:
            turned = name == "a.jpg" and orientation == 6
            tables = {key: np.reshape(table, (8, 8)) for key, table in opened.quantization.items()}
            terms.append([get_sampling(opened), *((table.T if turned else table).tolist() for table in tables.values())])
    assert terms[0] == terms[1]
    assert (read_image(tmp_path / "b.jpg").pixels - image.pixels).abs().mean() < 0.2 / 255


def test_another_colour_space_is_kept_to_the_bit(tmp_path):
    profile = wide_profile()
    picture = samples(3)
    PilImage.fromarray(picture).save(tmp_path / "a.png", icc_profile=profile)
    image = read_image(tmp_path / "a.png")
    assert (image.pixels - from_uint8(picture)).abs().mean() > 0.02, "the profile must differ from sRGB"
    assert write_edited(image, edited(image), tmp_path / "b.png") == ()
    with PilImage.open(tmp_path / "b.png") as result:
        assert result.info["icc_profile"] == profile
    assert np.array_equal(array(tmp_path / "b.png")[outside()], picture[outside()])
    box = (slice(None), *BOX)
    assert (read_image(tmp_path / "b.png").pixels - edited(image))[box].abs().mean() < 2 / 255


def test_palette_becomes_rgb_with_the_same_colours(tmp_path):
    PilImage.fromarray(samples(3)).quantize(16).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert write_edited(image, edited(image), tmp_path / "b.png") == ()
    again = read_image(tmp_path / "b.png").pixels
    assert torch.equal(again[:, torch.from_numpy(outside())], image.pixels[:, torch.from_numpy(outside())])


def test_a_lossy_webp_stays_lossy(tmp_path):
    PilImage.fromarray(samples(3)).save(tmp_path / "a.webp", quality=80, exif=exif_block())
    PilImage.fromarray(samples(3)).save(tmp_path / "c.webp", lossless=True, exif=exif_block())
    assert not read_stored(tmp_path / "a.webp")[0].terms
    assert read_stored(tmp_path / "c.webp")[0].terms["WEBP"]["lossless"]
    image = read_image(tmp_path / "a.webp")
    write_edited(image, edited(image), tmp_path / "b.webp")
    assert not read_stored(tmp_path / "b.webp")[0].terms
    check_exif(tmp_path / "b.webp")


@pytest.mark.parametrize(
    ("mode", "suffix", "message"),
    [("CMYK", ".jpg", "cannot keep CMYK"), ("RGBA", ".jpg", "cannot keep RGBA"), ("F", ".tif", "cannot keep F")],
)
def test_what_cannot_be_kept_is_said(tmp_path, mode, suffix, message):
    source = tmp_path / ("a.png" if mode == "RGBA" else f"a{suffix}")
    picture = PilImage.fromarray(samples(3)).convert("L" if mode == "F" else mode)
    (picture.convert("F").point(lambda value: value / 255) if mode == "F" else picture).save(source)
    image = read_image(source)
    (note,) = write_edited(image, edited(image), tmp_path / f"b{suffix}")
    assert message in note and str(tmp_path / f"b{suffix}") in note
    assert (read_image(tmp_path / f"b{suffix}").pixels - edited(image)).abs().mean() < 0.03


def test_sixteen_bit_grey_with_alpha_is_reduced_and_said(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(".png", samples(2, np.uint16), exif=None, icc=None))
    image = read_image(tmp_path / "a.png")
    (note,) = write_edited(image, edited(image), tmp_path / "b.png")
    assert "cannot keep 16-bit LA" in note


def test_a_tiff_layout_does_not_travel_as_exif(tmp_path):
    """The tags of a rotated TIFF's old layout would make a reader see another size."""
    (tmp_path / "a.tif").write_bytes(encode(".tif", samples(3), exif=exif_block(6).tobytes(), icc=None))
    image = read_image(tmp_path / "a.tif")
    for suffix in (".tif", ".png", ".jpg"):
        write_edited(image, edited(image), tmp_path / f"b{suffix}")
        with PilImage.open(tmp_path / f"b{suffix}") as result:
            assert suffix == ".tif" or not {256, 257, 273, 279} & set(result.getexif())
        assert read_image(tmp_path / f"b{suffix}").pixels.shape == (3, WIDTH, HEIGHT)
        check_exif(tmp_path / f"b{suffix}")


def test_long_exif_does_not_fit_a_jpeg(tmp_path):
    exif = exif_block()
    exif[0x010E] = "x" * 70_000
    PilImage.fromarray(samples(3)).save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png")
    (note,) = write_edited(image, edited(image), tmp_path / "b.jpg")
    assert "EXIF" in note and "65533" in note


def test_errors(tmp_path):
    PilImage.fromarray(samples(3)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    with pytest.raises(ImageError, match="could not be written"):
        write_edited(image, edited(image), tmp_path / "missing" / "b.png")
    PilImage.new("RGB", (16_400, 170)).save(tmp_path / "wide.png")
    with pytest.raises(ImageError, match=r"wide\.webp: could not be written .*16383"):
        write_edited(wide := read_image(tmp_path / "wide.png"), wide.pixels, tmp_path / "wide.webp")
    PilImage.fromarray(samples(3)[:10]).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="has changed since it was read"):
        write_edited(image, edited(image), tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()


def test_the_encoded_png_is_the_standard_one(tmp_path):
    """Checked by another decoder than the one that `read_stored` uses: Pillow, at 8 bits."""
    picture = samples(4, np.uint16)
    decoded = PilImage.open(io.BytesIO(encode(".png", picture, exif=None, icc=None)))
    assert np.array_equal(np.asarray(decoded), (picture >> 8).astype(np.uint8))
