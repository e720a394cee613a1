"""Reading and writing pictures: the one decoder that policy, rewards, metrics and tests share.

A picture read here is RGB in [0, 1], upright, in sRGB, whatever the file was: EXIF orientation is applied once, CMYK and other colour
spaces go through their ICC profile, alpha is laid on a background, 16-bit and float pictures are scaled. What cannot be read safely is
refused by name, before it is decoded where that is possible.
"""

import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image as PilImage
from PIL import ImageCms, ImageOps, features
from torch import Tensor
from torch.nn.functional import interpolate

from portraitkit.errors import ImageError
from portraitkit.files.atomic import replacing
from portraitkit.pictures import SUFFIXES, not_a_file

Pixels = Float[Tensor, "3 h w"] | UInt8[Tensor, "3 h w"]
"""RGB of an upright picture in sRGB: floats in [0, 1], or the bytes of its file."""
MAX_BYTES = 200 * 2**20
MAX_PIXELS = 120_000_000
MAX_ASPECT = 100.0
WHITE = (1.0, 1.0, 1.0)
READ = ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "JPEG2000", "PPM", "TGA", "ICO", *(["AVIF"] if features.check("avif") else [])]
STRIP = 256  # rows of a large picture that are worked on at once
ORIENTATION = 0x0112
SRGB_PRIMARIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # x and y of white, red, green and blue
# What Pillow raises for damaged files, beside OSError: its parsers let these through.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, OverflowError, struct.error, zlib.error)


@dataclass(frozen=True, eq=False)
class Image:
    """A picture as read."""

    pixels: Pixels
    path: Path  # where it came from
    exif: bytes | None = None  # its EXIF block with the orientation reset to 1, or None
    icc: bytes | None = None  # an ICC profile the pixels still need; None, since pixels are sRGB after reading
    warnings: tuple[str, ...] = field(default=())  # what was changed or dropped on the way, one line each


def read_image(
    path: str | Path,
    *,
    background: tuple[float, float, float] = WHITE,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    lean: bool = False,
) -> Image:
    """Read one picture, of at most so many bytes and pixels, which are checked before decoding. `background`, RGB in [0, 1], is laid under
    transparent pixels; `lean` leaves pixels of 8 bits as bytes, a quarter of the memory, instead of floats.

    Raises:
        ImageError: missing, unreadable, truncated, too large, or of an impossible shape; the message names file, rule and fix.
    """
    path = Path(path)
    if said := not_a_file(path):
        raise ImageError(f"{path}: {said}; one picture is needed, give its file")
    if path.stat().st_size > max_bytes:
        raise ImageError(f"{path}: {path.stat().st_size:,} bytes, at most {max_bytes:,} are read; make it smaller")
    return _decode(path, path, background, max_pixels, lean)


def decode_image(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode one picture that came as bytes, as `read_image` does a file; `name` is what messages call it.

    ImageError: unreadable, truncated, too large, or of an impossible shape."""
    return _decode(io.BytesIO(data), Path(name), WHITE, max_pixels)


def unit(pixels: Float[Tensor, "*n c h w"] | UInt8[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
    """Pictures, or parts of them, as floats in [0, 1]."""
    return pixels if pixels.is_floating_point() else pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def upright(picture: PilImage.Image) -> PilImage.Image:
    """A picture as its EXIF orientation says; itself, not a copy, where that is upright."""
    return ImageOps.exif_transpose(picture) if picture.getexif().get(ORIENTATION, 1) != 1 else picture


def _decode(source: Path | io.BytesIO, path: Path, background: tuple[float, float, float], max_pixels: int, lean: bool = False) -> Image:
    notes: list[str] = []
    with _opened(source, path, max_pixels) as (opened, raised):
        if opened.format == "TIFF" and opened.tag_v2.get(284) == 2 and max(opened.tag_v2[258]) > 8:  # type: ignore[attr-defined]
            raise ValueError("more than 8 bits in separate planes")  # which Pillow takes for 8 bits
        frames = getattr(opened, "n_frames", 1)
        if frames > 1:
            notes.append(f"{path}: {frames} frames, only the first is used")
            opened.seek(0)
        opened.load()
        exif = opened.getexif()
        profile = opened.info.get("icc_profile")
        array = _to_rgb(upright(opened), profile, background, notes, path)
        if ORIENTATION in exif:
            exif[ORIENTATION] = 1
        kept = exif.tobytes() if len(exif) else None  # before its parts are looked at, of which Pillow then writes some twice
        notes += [f"{path}: {tag} is not followed; read as sRGB, convert it" for tag in _other_colours(opened, source, profile)]
    for warning in raised:
        if not issubclass(warning.category, PilImage.DecompressionBombWarning):
            notes.append(f"{path}: {' '.join(str(warning.message).split())}")
    pixels = torch.from_numpy(array).permute(2, 0, 1)
    return Image(pixels if lean else unit(pixels.contiguous()), path, kept, None, tuple(notes))


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of a picture as `read_image` would give it, from the file's head alone. ImageError: missing, not a picture, or of an
    impossible shape."""
    path = Path(path)
    if said := not_a_file(path):
        raise ImageError(f"{path}: {said}; one picture is needed, give its file")
    with _opened(path, path, MAX_PIXELS) as (opened, _):
        turned = opened.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        width, height = opened.size
    return (width, height) if turned else (height, width)


@contextmanager
def _opened(source: Path | io.BytesIO, path: Path, max_pixels: int) -> Iterator[tuple[PilImage.Image, list[warnings.WarningMessage]]]:
    """A picture of a possible shape, not decoded yet, and a list that takes Pillow's warnings; what it refuses becomes an ImageError."""
    try:
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            with PilImage.open(source, formats=READ) as opened:
                width, height = opened.size
                if width < 1 or height < 1:
                    raise ImageError(f"{path}: {width}x{height} px, a picture needs at least 1x1")
                if width * height > max_pixels:
                    raise ImageError(f"{path}: {width}x{height} px, at most {max_pixels / 1e6:.0f} million pixels; make it smaller")
                if max(opened.size) / min(opened.size) > MAX_ASPECT:
                    raise ImageError(f"{path}: {width}x{height} px, sides may differ by a factor of {MAX_ASPECT:.0f} at most; crop it")
                yield opened, raised
    except PilImage.DecompressionBombError as error:
        raise ImageError(f"{path}: at most {max_pixels / 1e6:.0f} million pixels are read; make it smaller") from error
    except DAMAGED as error:
        reason = " ".join(str(error).replace(str(path), "").replace(repr(source), "").split()).strip(" '") or type(error).__name__
        raise ImageError(f"{path}: cannot be read as a picture ({reason}); convert it to PNG or JPEG again") from error


def _to_rgb(
    image: PilImage.Image, profile: bytes | None, background: tuple[float, float, float], notes: list[str], path: Path
) -> np.ndarray:
    """Array (h, w, 3), sRGB: float32 in [0, 1], or 8 bits."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scaled(np.asarray(image), notes, path)
    if image.mode in ("1", "L") and "transparency" not in image.info:
        image = image.convert("L")
    alpha = None
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"), dtype=np.float32)[..., None] / 255
        image = image.convert("RGB")
    elif image.mode == "P":
        image = image.convert("RGB")
    if profile:
        image = _through_profile(image, profile, notes, path)
    array = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    return array if alpha is None else array.astype(np.float32) / 255 * alpha + np.asarray(background, dtype=np.float32) * (1 - alpha)


def _other_colours(picture: PilImage.Image, source: Path | io.BytesIO, profile: bytes | None) -> list[str]:
    """Tags that say that a picture without a profile is not in sRGB, in words: PNG's cICP, gAMA and cHRM, EXIF's colour space."""
    found = []
    if picture.format == "PNG":
        chunks = _png_chunks(source)
        if (code := chunks.get(b"cICP", b"")) and code[:3] != b"\x01\x0d\x00":
            found.append(f"colour tag cICP ({', '.join(map(str, code))}: primaries, transfer, matrix, range)")
        elif not profile and b"sRGB" not in chunks:
            gamma = picture.info.get("gamma")
            if gamma and abs(gamma - 1 / 2.2) > 0.01:
                found.append(f"gamma {gamma:g} (gAMA; {1 / 2.2:.4f} is sRGB's)")
            whites = picture.info.get("chromaticity")
            if whites and max(abs(one - other) for one, other in zip(whites, SRGB_PRIMARIES, strict=True)) > 0.01:
                found.append("primaries (cHRM) other than sRGB's")
    with suppress(*DAMAGED):  # a block of EXIF that cannot be read says nothing
        exif = picture.getexif()
        if not profile and (exif.get_ifd(0x8769).get(0xA001) == 2 or exif.get_ifd(0xA005).get(1) == "R03"):
            found.append("EXIF's colour space Adobe RGB")
    return found


def _png_chunks(source: Path | io.BytesIO) -> dict[bytes, bytes]:
    """The small chunks of a PNG before its pixels."""
    data = source.getvalue() if isinstance(source, io.BytesIO) else source.open("rb")
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    chunks: dict[bytes, bytes] = {}
    with stream:
        stream.seek(8)
        while len(head := stream.read(8)) == 8 and head[4:] != b"IDAT":
            size = int.from_bytes(head[:4], "big")
            chunks[head[4:]] = stream.read(min(size, 64))
            stream.seek(size - min(size, 64) + 4, io.SEEK_CUR)
    return chunks


def _through_profile(image: PilImage.Image, profile: bytes, notes: list[str], path: Path) -> PilImage.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        if image.mode == "RGB":  # one that moves no colour by more than two levels of 255 leaves pixels exact; names lie: linear sRGB
            levels = np.linspace(0, 255, 9).astype(np.uint8)
            colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
            moved = ImageCms.profileToProfile(PilImage.fromarray(colours), source, srgb, outputMode="RGB")
            if np.abs(np.asarray(moved).astype(int) - colours).max() <= 2:
                return image
        converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        notes.append(f"{path}: its colour profile does not fit the picture ({error}); read without it")
        return image
    assert converted is not None
    return converted


def _scaled(array: np.ndarray, notes: list[str], path: Path) -> np.ndarray:
    """Greyscale of more than 8 bits: integers by 65535, floats as they are, and what does not fit [0, 1] by its own range."""
    values = array.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        notes.append(f"{path}: {int((~finite).sum())} values are not finite; infinity is drawn white, the others black")
    known = values[finite]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    if array.dtype.kind != "f" and low >= 0 and high <= 65535:
        values = values / 65535
    elif low < 0 or high > 1:
        notes.append(f"{path}: values in [{low:g}, {high:g}] scaled to [0, 1]")
        values = (values - low) / (high - low if high > low else high)
    values = np.nan_to_num(values, nan=0, posinf=1, neginf=0).clip(0, 1).astype(np.float32)
    return np.repeat(values[..., None], 3, axis=-1)


def write_image(
    path: str | Path,
    pixels: Float[Tensor, "3 h w"] | UInt8[np.ndarray, "h w 3"],
    *,
    exif: bytes | None = None,
    icc: bytes | None = None,
    quality: int = 95,
) -> None:
    """Write one picture (RGB in [0, 1], or 8-bit) in the format of the suffix, in one piece: a temporary file beside it, then a rename.

    Raises:
        ImageError: unknown suffix, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ImageError(f"{path}: cannot write {path.suffix or 'a file without suffix'}; use {', '.join(SUFFIXES)}")
    picture = to_pil(pixels) if isinstance(pixels, Tensor) else PilImage.fromarray(pixels)
    options: dict[str, Any] = {key: value for key, value in (("exif", exif), ("icc_profile", icc)) if value}
    if path.suffix.lower() in (".jpg", ".jpeg", ".webp"):
        options |= {"quality": quality} | ({"subsampling": 0} if path.suffix.lower() != ".webp" else {})
    try:
        with replacing(path) as temporary:
            picture.save(temporary, **options)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{path}: could not be written ({reason}); check its size, the folder and the disk") from error


def to_uint8(pixels: Float[Tensor, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Round to 8 bits; values outside [0, 1] are clipped. ImageError: a value is not finite: such a picture is not written, shown or
    judged."""
    if not pixels.isfinite().all():
        raise ImageError("a picture with pixels that are not finite (NaN or infinity) cannot be written or judged; check what made it")
    return pixels.detach().clamp(0, 1).mul_(255).round_().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def from_uint8(array: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "3 h w"]:
    """The inverse of `to_uint8`."""
    return torch.from_numpy(array.copy()).permute(2, 0, 1).float().contiguous() / 255


def to_pil(pixels: Float[Tensor, "3 h w"]) -> PilImage.Image:
    """An 8-bit RGB PIL picture."""
    return PilImage.fromarray(to_uint8(pixels))


def from_pil(image: PilImage.Image) -> Float[Tensor, "3 h w"]:
    """Pixels of a PIL picture, converted to RGB; no orientation and no profile is applied, `read_image` does that."""
    return from_uint8(np.asarray(image.convert("RGB")))


def rescaled(pixels: Pixels, size: tuple[int, int], mode: str) -> Float[Tensor, "3 hh ww"]:
    """`interpolate` with antialiasing; bytes give the same without the whole picture in floats: first across, in strips, then down."""
    if not pixels.is_floating_point():
        strips = pixels.split(STRIP, 1)
        pixels = torch.cat([rescaled(unit(strip), (strip.shape[1], size[1]), mode) for strip in strips], 1)
    return interpolate(pixels[None], size, mode=mode, antialias=True, align_corners=False)[0]


def resize(pixels: Pixels, size: tuple[int, int]) -> Float[Tensor, "3 hh ww"]:
    """Bicubic with antialiasing to (height, width), clipped to [0, 1]; the same size gives the same pixels."""
    return unit(pixels) if tuple(pixels.shape[1:]) == tuple(size) else rescaled(pixels, size, "bicubic").clamp(0, 1)


def within(pixels: Pixels, longest: int) -> Float[Tensor, "3 hh ww"]:
    """Reduced to a longest side of `longest` pixels; a smaller picture as it is."""
    scale = min(1.0, longest / max(pixels.shape[1:]))
    return resize(pixels, (max(round(pixels.shape[1] * scale), 1), max(round(pixels.shape[2] * scale), 1)))


# ---- sRGB to CIELAB and CIEDE2000, differentiable: IEC 61966-2-1 transfer curve, D65 white, CIE 1976 L*a*b*

# Linear sRGB to XYZ, rows X, Y, Z; divided by the D65 white so that white is (1, 1, 1).
_XYZ = torch.tensor([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
_XYZ_OVER_WHITE = _XYZ / torch.tensor([0.95047, 1.0, 1.08883])[:, None]


def luminance(image: Float[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 1 h w"]:
    """Rec. 601 luma of gamma-encoded RGB, in [0, 1] for images in [0, 1]."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=image.dtype, device=image.device)
    return (image * weights.view(3, 1, 1)).sum(-3, keepdim=True)


def srgb_to_lab(image: Float[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 3 h w"]:
    """CIELAB of gamma-encoded sRGB in [0, 1]: L* in [0, 100], a* and b* roughly in [-128, 128]. The gradient is finite at 0."""
    image = image.clamp(0, 1)
    linear = torch.where(image <= 0.04045, image / 12.92, ((image.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)
    xyz = torch.einsum("ij,...jhw->...ihw", _XYZ_OVER_WHITE.to(image), linear)
    cut = (6 / 29) ** 3
    f = torch.where(xyz > cut, xyz.clamp_min(cut) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.unbind(-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-3)


def lab_to_srgb(lab: Float[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 3 h w"]:
    """The inverse of `srgb_to_lab`; colours outside sRGB are clipped to [0, 1]. The gradient is finite everywhere."""
    lightness, a, b = lab.unbind(-3)
    y = (lightness + 16) / 116
    f = torch.stack([y + a / 500, y, y - b / 200], dim=-3)
    xyz = torch.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    linear = torch.einsum("ij,...jhw->...ihw", torch.linalg.inv(_XYZ_OVER_WHITE).to(lab), xyz)
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp_min(0.0031308) ** (1 / 2.4) - 0.055, 12.92 * linear).clamp(0, 1)


def ciede2000(one: Float[Tensor, "*#batch 3 h w"], other: Float[Tensor, "*#batch 3 h w"]) -> Float[Tensor, "... 1 h w"]:
    """Colour difference of CIELAB images by CIEDE2000, k = 1 (Sharma, Wu and Dalal 2005); 1 is just visible. The gradient is finite.

    Where both colours are the same it is 1e-4, not 0.
    """
    (lightness, a, b), (other_lightness, other_a, other_b) = one.unbind(-3), other.unbind(-3)
    chroma = (_length(a, b) + _length(other_a, other_b)) / 2
    stretch = 1.5 - 0.5 * _rises_above_25(chroma)
    a, other_a = a * stretch + 1e-6, other_a * stretch + 1e-6  # off 0, where an angle has no gradient
    own, others = _length(a, b), _length(other_a, other_b)
    turn = torch.remainder(torch.atan2(other_b, other_a) - torch.atan2(b, a) + math.pi, 2 * math.pi) - math.pi
    hue = torch.atan2(b, a) + turn / 2
    middle, light = (own + others) / 2, (lightness + other_lightness) / 2 - 50
    cosines = ((0.17, 1, 30), (-0.24, 2, 0), (-0.32, 3, -6), (0.20, 4, 63))
    t = 1 - sum(size * torch.cos(times * hue - math.radians(shift)) for size, times, shift in cosines)
    by_lightness = (other_lightness - lightness) / (1 + 0.015 * light.square() / (20 + light.square()).sqrt())
    by_chroma = (others - own) / (1 + 0.045 * middle)
    by_hue = 2 * (own * others).sqrt() * torch.sin(turn / 2) / (1 + 0.015 * middle * t)
    from_blue = (torch.remainder(hue, 2 * math.pi) - math.radians(275)) / math.radians(25)
    twist = -2 * _rises_above_25(middle) * torch.sin(math.pi / 3 * torch.exp(-from_blue.square()))
    squares = by_lightness.square() + by_chroma.square() + by_hue.square() + twist * by_chroma * by_hue
    return (squares.clamp_min(0) + 1e-8).sqrt().unsqueeze(-3)


def _length(a: Tensor, b: Tensor) -> Tensor:
    return (a.square() + b.square() + 1e-12).sqrt()


def _rises_above_25(chroma: Tensor) -> Tensor:
    """sqrt(C^7 / (C^7 + 25^7))."""
    share = chroma / 25
    return share**3.5 / (share**7 + 1).sqrt()
