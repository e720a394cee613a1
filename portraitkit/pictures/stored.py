"""Edited pictures written in the terms of the file they come from: its channels, bit depth, profile and alpha.

`read_image` gives 8-bit sRGB on a background, which is what networks want. Writing that back would change every pixel
of a picture with 16 bits, a camera's colour profile or transparency. So an edit is added to the samples as they are
stored, and where there is no edit the samples stay as they are, bit for bit.
"""

import io
import struct
import sys
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8, UInt16
from PIL import Image as PilImage
from PIL import ImageCms, ImageFile
from PIL.JpegImagePlugin import JpegImageFile, get_sampling
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from PIL.TiffTags import TAGS_V2_GROUPS
from torch import Tensor

from portraitkit.errors import ImageError
from portraitkit.files.atomic import replacing
from portraitkit.pictures.images import ORIENTATION, READ, STRIP, Image, Pixels, to_pil, to_uint8, unit, upright, write_image

Samples = UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"]
EXIF_HEADER = b"Exif\x00\x00"
FORMATS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
CHANNELS = {"JPEG": (1, 3), "WEBP": (1, 3, 4), "BMP": (1, 3), "PNG": (1, 2, 3, 4), "TIFF": (1, 2, 3, 4)}
PNG_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}
Strips = Iterable[tuple[int, Float[Tensor, "3 rows w"]]]
"""Strips of a picture, RGB in [0, 1], and the rows at which they begin; the rest of it is as it was."""
Terms = Mapping[str, Mapping[str, Any]]  # Of a JPEG or WebP: its format, and what Pillow needs to encode another picture as the file was
LUMA = (0.299, 0.587, 0.114)
# What TIFF files keep beside EXIF, and what would be wrong in another file: the layout of the samples, the profile, and
# XMP and Photoshop blocks, which repeat size and orientation.
LAYOUT_TAGS = {*range(254, 260), 262, 266, 273, *range(277, 282), 284, *range(288, 292), 317, *range(320, 326), 330}
LAYOUT_TAGS |= {338, 339, 347, *range(512, 522), *range(529, 533), 700, 34377, 34675}
MAX_JPEG_EXIF = 65_533


@dataclass(frozen=True, eq=False)
class Stored:
    """A picture as its file has it, but upright."""

    samples: Samples  # 1 grey, 2 grey and alpha, 3 RGB or 4 RGBA channels
    icc: bytes | None  # The file's colour profile
    terms: Terms  # How it was encoded


def write_edited(image: Image, edited: Float[Tensor, "3 h w"] | Strips, path: str | Path) -> tuple[str, ...]:
    """Write an edited picture in the terms of the file it was read from, which is opened again; returns what could not be kept, one line
    each.

    Where `edited` equals `image.pixels`, a PNG, TIFF, BMP or lossless WebP has the samples of the source, bit for bit. A JPEG is encoded
    anew by its own tables and subsampling, so that blocks without an edit stay all but the same; lossy WebP at quality 95. `edited` is RGB
    in [0, 1], sRGB, upright, of the same size; or its changed strips, so that no second picture is held.

    Raises:
        ImageError: the file has changed since it was read, or `path` cannot be written.
    """
    path, strips = Path(path), [(0, edited)] if isinstance(edited, Tensor) else edited
    exif, notes = image.exif, []
    if exif is not None:
        block = PilImage.Exif()
        block.load(exif)
        for tag in LAYOUT_TAGS & set(block):
            del block[tag]
        exif = block.tobytes() if len(block) else None
    if exif and path.suffix.lower() in (".jpg", ".jpeg") and len(exif) > MAX_JPEG_EXIF:
        notes.append(f"{path}: EXIF of {len(exif)} bytes dropped, a JPEG holds {MAX_JPEG_EXIF}")
        exif = None
    stored, mode = read_stored(image.path)
    if stored is None or not can_hold(path.suffix, stored.samples):
        notes.append(f"{path}: written as 8-bit sRGB, since {path.suffix or 'the format'} cannot keep {mode} here")
        whole = np.concatenate([to_uint8(unit(strip)) for strip in image.pixels.split(STRIP, 1)])
        for start, rows in strips:
            whole[start : start + rows.shape[1]] = to_uint8(rows)
        write_image(path, whole, exif=exif)
        return tuple(notes)
    if stored.samples.shape[:2] != tuple(image.pixels.shape[1:]):
        raise ImageError(f"{image.path}: has changed since it was read; run again")
    add_edits(stored, image.pixels, strips)
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(encode(path.suffix, stored.samples, exif=exif, icc=stored.icc, terms=stored.terms))
    except (OSError, ValueError) as error:  # ValueError: more pixels a side than the format has
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{path}: could not be written ({reason}); check its size, the folder and the disk") from error
    return tuple(notes)


def read_stored(path: Path) -> tuple[Stored | None, str]:
    """A picture's samples, None where they are neither grey nor RGB of 8 or 16 bits, and a name for what they are; palettes become RGB or
    RGBA, 1-bit pictures grey."""
    with PilImage.open(path, formats=READ) as opened:
        raw = {_raw_mode(tile)[:-1] for tile in opened.tile}
        opened.load()
        picture = upright(opened)
        icc, mode, terms = opened.info.get("icc_profile"), opened.mode, _terms(opened, path)
    if raw in ({"RGB;16"}, {"RGBA;16"}):  # Pillow has just reduced it to the high bytes
        samples, mode = np.asarray(picture).astype(np.uint16) << 8 | _low_bytes(path), f"16-bit {mode}"
    elif raw == {"LA;16"}:
        samples, mode = None, "16-bit LA"
    elif picture.mode.startswith("I;16"):
        samples = np.asarray(picture).astype(np.uint16)[..., None]
    elif picture.mode in ("RGB", "RGBA", "L", "LA", "P", "PA", "1"):
        if picture.mode in ("P", "PA", "1") or "transparency" in picture.info:
            clear = picture.mode == "PA" or "transparency" in picture.info
            picture = picture.convert("RGBA" if clear else "L" if picture.mode == "1" else "RGB")
        samples = np.array(picture)
        samples = samples[..., None] if samples.ndim == 2 else samples
    else:
        samples = None
    return None if samples is None else Stored(samples, icc, terms), mode


def add_edits(stored: Stored, picture: Pixels, strips: Strips) -> None:
    """Add what was changed in the sRGB picture that was read from stored samples to those samples.

    They stay the same where the pictures are. Alpha stays. Grey takes the luma of the difference.
    """
    peak, colours = np.iinfo(stored.samples.dtype).max, 3 if stored.samples.shape[2] >= 3 else 1
    there = _from_srgb(stored.icc) if colours == 3 and stored.icc is not None else None
    for start, after in strips:
        before, part = unit(picture[:, start : start + after.shape[1]]), stored.samples[start : start + after.shape[1]]
        touched = (before != after).any(0).cpu().numpy()
        change = (after - before).permute(1, 2, 0).cpu().numpy()[touched]
        if colours == 1:
            change = change @ np.asarray(LUMA, np.float32)[:, None]
        elif there is not None:
            values = [np.asarray(ImageCms.applyTransform(to_pil(pixels), there)) for pixels in (before, after)]
            change = (values[1][touched].astype(np.float32) - values[0][touched]) / 255
        sums = part[touched, :colours] + change * peak
        part[touched, :colours] = sums.round().clip(0, peak).astype(part.dtype)


def _from_srgb(icc: bytes) -> ImageCms.ImageCmsTransform | None:
    """sRGB to a profile; None where it is sRGB, or of no use as `read_image` found too."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        if "srgb" in ImageCms.getProfileDescription(profile).lower():
            return None
        return ImageCms.buildTransform(ImageCms.createProfile("sRGB"), profile, "RGB", "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None


def _low_bytes(path: Path) -> np.ndarray:
    """The low bytes of 16-bit colour: what Pillow takes for the high ones when told of the opposite byte order."""
    native, other = ("L", "B") if sys.byteorder == "little" else ("B", "L")
    opposite = {native: other, other: native, "N": other}
    with PilImage.open(path, formats=READ) as opened:
        swapped = []
        for tile in opened.tile:
            raw = _raw_mode(tile)
            raw = raw[:-1] + opposite[raw[-1]]
            swapped.append(tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw))
        opened.tile = swapped
        opened.load()
        return np.asarray(upright(opened))


def _raw_mode(tile: ImageFile._Tile) -> str:
    """How the samples lie in the file, "RGB;16B" for instance."""
    return str(tile.args[0] if isinstance(tile.args, tuple) else tile.args)


def _terms(opened: PilImage.Image, path: Path) -> Terms:
    if not isinstance(opened, JpegImageFile):
        return {"WEBP": {"lossless": True, "exact": True}} if _is_lossless_webp(path) else {}
    tables, sampling = opened.quantization, get_sampling(opened)
    if opened.getexif().get(ORIENTATION, 1) >= 5:  # it is stored on its side, and so are its tables
        tables = {name: np.reshape(table, (8, 8)).T.ravel().tolist() for name, table in tables.items()}
        sampling = 0 if sampling == 1 else sampling  # 4:2:2 cannot be halved upright
    return {"JPEG": {"qtables": tables, "subsampling": max(sampling, 0)}}


def _is_lossless_webp(path: Path) -> bool:
    data = path.read_bytes()
    position = 12 if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else len(data)
    while position + 8 <= len(data):
        kind, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        if kind in (b"VP8 ", b"VP8L"):
            return kind == b"VP8L"
        position += 8 + size + size % 2
    return False


# ---- sample arrays as files; Pillow writes most of them; 16-bit colour, and TIFF with EXIF and compression, it cannot


def can_hold(suffix: str, samples: Samples) -> bool:
    """Whether a format keeps these channels (1 grey, 2 with alpha, 3 RGB, 4 with alpha) at this bit depth."""
    name = FORMATS.get(suffix.lower())
    return name is not None and samples.shape[2] in CHANNELS[name] and (samples.dtype == np.uint8 or name in ("PNG", "TIFF"))


def encode(suffix: str, samples: Samples, *, exif: bytes | None, icc: bytes | None, terms: Terms | None = None) -> bytes:
    """Encode a picture that the format of the suffix (such as .png) `can_hold`; returns the file's bytes. The EXIF block has the
    orientation 1 and no tags that describe a file's layout; without terms of the format, JPEG and WebP get quality 95."""
    name = FORMATS[suffix.lower()]
    if name == "TIFF":
        return _tiff(samples, exif, icc)
    if samples.dtype == np.uint16:
        return _png(samples, exif, icc)
    options: dict[str, Any] = {key: value for key, value in (("exif", exif), ("icc_profile", icc)) if value}
    if name in ("JPEG", "WEBP"):
        options |= (terms or {}).get(name, {"quality": 95, "subsampling": 0})
    file = io.BytesIO()
    PilImage.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples).save(file, name, **options)
    return file.getvalue()


def _png(samples: Samples, exif: bytes | None, icc: bytes | None) -> bytes:
    """16 bits a sample; every row after the first holds the difference to the one above (filter 2)."""
    height, width, channels = samples.shape
    rows = samples.astype(">u2").view(np.uint8).reshape(height, -1)
    filtered = np.concatenate([np.full((height, 1), 2, np.uint8), np.diff(rows, axis=0, prepend=np.uint8(0))], 1)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, PNG_COLOURS[channels], 0, 0, 0))]
    if icc:
        chunks.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc)))
    if exif:
        chunks.append((b"eXIf", exif.removeprefix(EXIF_HEADER)))
    chunks += [(b"IDAT", zlib.compress(filtered.tobytes())), (b"IEND", b"")]
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        file += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return file


def _tiff(samples: Samples, exif: bytes | None, icc: bytes | None) -> bytes:
    """One deflated strip with horizontal differences, little-endian."""
    height, width, channels = samples.shape
    differences = np.diff(samples, axis=1, prepend=samples.dtype.type(0))
    data = zlib.compress(differences.astype(samples.dtype.newbyteorder("<")).tobytes())
    directory = ImageFileDirectory_v2(prefix=b"II")
    block = PilImage.Exif()
    if exif:
        block.load(exif)
    for tag in block:
        directory[tag] = block.get_ifd(tag) if tag in TAGS_V2_GROUPS else block[tag]
    layout = {
        256: width,
        257: height,
        258: (samples.dtype.itemsize * 8,) * channels,
        259: 8,  # deflate
        262: 2 if channels >= 3 else 1,  # RGB, or black is zero
        273: 0,  # offset of the strip: where the directory ends
        277: channels,
        278: height,
        279: len(data),
        284: 1,  # channels interleaved
        317: 2,  # horizontal differences
    }
    if channels in (2, 4):
        layout[338] = 2  # the last channel is alpha, not multiplied in
    if icc:
        layout[34675] = icc
    for tag, value in layout.items():
        directory[tag] = value
    file = io.BytesIO()
    directory.save(file)
    return file.getvalue() + data
