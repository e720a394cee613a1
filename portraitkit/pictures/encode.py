"""Sample arrays as files. Pillow writes most of them; 16-bit colour, and TIFF with EXIF and compression, it cannot."""

import io
import struct
import zlib

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image as PilImage
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from PIL.TiffTags import TAGS_V2_GROUPS

Samples = UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"]
EXIF_HEADER = b"Exif\x00\x00"
FORMATS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
FORMATS |= {".bmp": "BMP"}
CHANNELS = {"JPEG": (1, 3), "WEBP": (1, 3, 4), "BMP": (1, 3), "PNG": (1, 2, 3, 4), "TIFF": (1, 2, 3, 4)}
PNG_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}


def can_hold(suffix: str, samples: Samples) -> bool:
    """Whether a format keeps these channels (1 grey, 2 with alpha, 3 RGB, 4 with alpha) at this bit depth."""
    name = FORMATS.get(suffix.lower())
    deep = samples.dtype == np.uint16
    return name is not None and samples.shape[2] in CHANNELS[name] and (not deep or name in ("PNG", "TIFF"))


def encode(suffix: str, samples: Samples, *, exif: bytes | None, icc: bytes | None, quality: int = 95, lossless: bool = False) -> bytes:
    """Encode a picture that the format `can_hold`; returns the file's bytes.

    Args:
        suffix: of the file, ".png" for instance.
        samples: 1 grey, 2 grey and alpha, 3 RGB or 4 RGBA channels, 8 or 16 bits.
        exif: EXIF block, its orientation 1 and its tags free of those that describe a file's layout.
        icc: ICC profile.
        quality: of JPEG and lossy WebP.
        lossless: of WebP.
    """
    name = FORMATS[suffix.lower()]
    if name == "TIFF":
        return _tiff(samples, exif, icc)
    if samples.dtype == np.uint16:
        return _png(samples, exif, icc)
    options: dict[str, object] = {key: value for key, value in (("exif", exif), ("icc_profile", icc)) if value}
    if name == "JPEG":
        options |= {"quality": quality, "subsampling": 0}
    elif name == "WEBP":
        options |= {"lossless": True, "exact": True} if lossless else {"quality": quality}
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
