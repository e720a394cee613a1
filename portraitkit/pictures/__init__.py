"""The one decoder and encoder of pictures, and colour spaces. This module imports nothing heavy."""

import os
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from unicodedata import normalize

from portraitkit.errors import ImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")
"""What pictures are written as."""
READABLE = (*SUFFIXES, ".jpe", ".jfif", ".avif", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".dib")
"""What is taken for a picture wherever a folder is looked through."""
OTHERS = (".heic", ".heif", ".hif", ".jxl", ".psd", ".svg", ".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".exr")
"""Pictures that are not read; where one lies in a folder, a line says so."""

NO_LINK, NO_FILE = "is a link to nothing", "is a pipe, a socket or a device"


def list_images(folder: str | Path, *, flat: bool = False) -> list[Path]:
    """Picture files directly in a folder, sorted by name; hidden files are left out. See `pick_images` for what is told.

    With `flat` a line says which subfolders hold pictures, which are not listed. ImageError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder")
    inside = sorted(folder.iterdir())
    if flat and (below := [path.name for path in inside if path.is_dir() and not path.name.startswith(".") and _holds_pictures(path)]):
        _say(f"note: {folder}: subfolders are not looked into, and {_some(below)} holds pictures; give a subfolder by itself")
    return pick_images(inside)


def pick_images(paths: Iterable[Path]) -> list[Path]:
    """Those of some files that are pictures, in their order; hidden ones are left out.

    A line on the standard error names those that look like pictures and are not read, links to nothing, pipes and devices.
    """
    paths = [path for path in paths if not path.name.startswith(".")]
    strange = [path for path in paths if path.suffix.lower() in OTHERS and path.is_file()]
    if strange:
        _say(f"note: {strange[0].parent}: {_some([path.name for path in strange])} cannot be read and is left out; convert to JPEG or PNG")
    said = {path: not_a_file(path) for path in paths if path.suffix.lower() in READABLE}
    for kind in (NO_LINK, NO_FILE):
        if wrong := [path for path in said if said[path] == kind]:
            _say(f"note: {wrong[0].parent}: {_some([path.name for path in wrong])} {kind} and is left out")
    return [path for path in paths if _is_image(path)]


def matched_name(name: str) -> str:
    """What a file's name is matched by: its letters in Unicode's composed form (NFC), since macOS writes them decomposed."""
    return normalize("NFC", name)


def not_a_file(path: Path) -> str:
    """What lies where a file is needed, in words; empty where it is one."""
    if path.is_file():
        return ""
    if path.is_dir():
        return "is a folder"
    return NO_FILE if path.exists() else NO_LINK if path.is_symlink() else "no such file"


def _holds_pictures(folder: Path) -> bool:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(_is_image(Path(parent, name)) for name in files):
            return True
    return False


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in READABLE and not path.name.startswith(".") and path.is_file()


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:3])}{', ..' if names[3:] else ''} ({len(names)} in all)"


@cache
def _say(text: str) -> None:
    """Once a process, however often a folder is listed."""
    print(text, file=sys.stderr, flush=True)
