"""The one decoder and encoder of pictures, and colour spaces. This module imports nothing heavy."""

from pathlib import Path

from portraitkit.errors import ImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")


def list_images(folder: str | Path) -> list[Path]:
    """Picture files directly in a folder, sorted by name; hidden files are left out.

    Raises:
        ImageError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder")
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file() and not p.name.startswith("."))
