"""One-file HTML pages: where templates are found, the common style sheet, numbers and pictures as pages show them."""

import base64
import math
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
"""Of the style sheet that all reports include: `report.css`."""


def page_environment(folder: Path, *, autoescape: bool = True) -> "Environment":
    """Templates of a folder and the common ones; an undefined name is an error.

    Args:
        folder: of the page's own templates.
        autoescape: as HTML.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([folder, TEMPLATES])
    environment = Environment(loader=loader, autoescape=autoescape, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "signed": signed}
    return environment


def number(value: float | None, digits: int = 3) -> str:
    """With a real minus; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """The same with its sign."""
    return "–" if value is None or not math.isfinite(value) else f"{value:+.{digits}f}".replace("-", "−")


def inline_picture(path: Path, side: int = 256) -> str:
    """A picture of ours as a data address, scaled down to `side` pixels."""
    with Image.open(path) as image:
        image.thumbnail((side, side))
        buffer = BytesIO()
        image.save(buffer, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
