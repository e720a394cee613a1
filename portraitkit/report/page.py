"""Reports: one-file HTML pages from `page.html.j2`, which each command's template extends; numbers, pictures and settings in them."""

import base64
import hashlib
import html
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from portraitkit.config import Options
from portraitkit.files.atomic import write_text

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"  # Of what all pages share: `page.html.j2`, `macros.html.j2`, `report.css` and `page.js`
AMPLIFY = 4  # How much stronger a difference is shown than it is
ZOOMED = 256

Box = tuple[int, int, int, int]


def write_page(path: Path, template: Path, context: Mapping[str, Any], **filters: Any) -> Path:
    """Write a report: no outside requests, everything escaped, the home folder as `~`; returns its path. The template extends
    `page.html.j2`, which needs a `title` in the context; `filters` are those of this page.
    """
    environment = page_environment(template.parent)
    environment.finalize = _without_home
    environment.filters.update(filters)
    write_text(path, environment.get_template(template.name).render(context))
    return path


def page_environment(folder: Path, *, autoescape: bool = True) -> "Environment":
    """Templates of a folder and the common ones; an undefined name is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([folder, TEMPLATES])
    environment = Environment(loader=loader, autoescape=autoescape, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)

    def csp_hash(script: str) -> str:  # the source expression under which a content security policy lets exactly this script run
        return "sha256-" + base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode("ascii")

    ours: dict[str, Any] = {"number": number, "signed": signed, "interval": interval, "plural": plural, "p": p_value, "csp_hash": csp_hash}
    environment.filters.update(ours)
    return environment


# ---- numbers and words


def number(value: float | None, digits: int = 3) -> str:
    """With a real minus; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """The same with its sign."""
    return "–" if value is None or not math.isfinite(value) else f"{value:+.{digits}f}".replace("-", "−")


def interval(ends: Sequence[float | None] | None) -> str:
    """Two ends; a dash where there are none."""
    return "–" if ends is None else f"{number(ends[0])} to {number(ends[1])}"


def p_value(value: float) -> str:
    """A p value; nothing where there is none.

    >>> p_value(0.00001), p_value(0.0321)
    ('< .001', '.032')
    """
    if not math.isfinite(value):
        return ""
    return "< .001" if value < 0.001 else f"{value:.3f}".replace("0.", ".", 1)


def plural(count: int, noun: str) -> str:
    """A count and its noun.

    >>> plural(1, "photo"), plural(12000, "photo")
    ('1 photo', '12,000 photos')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def markdown_text(value: object) -> str:
    """Text on one line that Markdown shows as it is, in a table's cell and elsewhere; underscores inside words mean nothing to it.

    >>> markdown_text("a|b <i> _x_ a_b")
    'a\\\\|b &lt;i&gt; \\\\_x\\\\_ a_b'
    """
    text = html.escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"[\\|`*\[\]~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


def _without_home(value: object) -> object:
    """What a template prints, without the folder of somebody's home."""
    home = str(Path.home()).rstrip("/")
    if not home or not isinstance(value, str) or value.startswith("data:"):
        return value
    return value.replace(home + "/", type(value)("~/"))


# ---- pictures, inlined as data: what is shown of a photo, where to zoom in, what a retouch changed


@dataclass(frozen=True)
class Tile:
    """One column of a photo's figure, as data addresses: the picture; where asked for, zoom and difference from the untouched photo."""

    title: str
    picture: str
    zoom: str = ""
    difference: str = ""
    kind: str = ""


def tile(title: str, picture: Image.Image, source: Image.Image, box: Box, *, kind: str = "", lossless: int = ZOOMED) -> Tile:
    """A picture of the size of the untouched photo `source`, with its zoom; its difference is empty where nothing was changed."""
    zoomed = picture.crop(box)
    scale = max(1, round(ZOOMED / zoomed.width))
    zoomed = zoomed.resize((zoomed.width * scale, zoomed.height * scale), Image.Resampling.BICUBIC)
    changed = ImageChops.difference(picture, source).getbbox() is not None
    difference = data_uri(ImageChops.subtract(picture, source, scale=1 / AMPLIFY, offset=128), lossless=lossless) if changed else ""
    return Tile(title, data_uri(picture, lossless=lossless), data_uri(zoomed, lossless=lossless), difference, kind)


def zoom_box(source: Image.Image, reference: Image.Image) -> Box:
    """Left, top, right, bottom of the square, a third of the shorter side, where the two pictures differ most."""
    side = max(1, min(source.size) // 3)
    change = ImageChops.difference(source, reference).convert("L").filter(ImageFilter.GaussianBlur(side / 4))
    half = side // 2
    inside = np.asarray(change, dtype=np.int32)[half : source.height - side + half + 1, half : source.width - side + half + 1]
    top, left = (int(place) for place in np.unravel_index(inside.argmax(), inside.shape))
    return left, top, left + side, top + side


def in_percent(box: Box, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, width, height of a box in percent of a picture."""
    (left, top, right, bottom), (width, height) = box, size
    return 100 * left / width, 100 * top / height, 100 * (right - left) / width, 100 * (bottom - top) / height


def data_uri(picture: Image.Image | Path, *, largest: int = 512, lossless: int = ZOOMED) -> str:
    """A picture as a data address: PNG up to `lossless` pixels, else JPEG of high quality, scaled down to `largest`."""
    if isinstance(picture, Path):
        with Image.open(picture) as image:
            picture = image.convert("RGB")
    kind, options = "png", {}
    if max(picture.size) > lossless:
        kind, options = "jpeg", {"quality": 93, "subsampling": 0}
        picture = picture.copy()
        picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    data = BytesIO()
    picture.save(data, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"


# ---- how a run was made


def setup(environment: Mapping[str, Any], config: Mapping[str, Any], kind: type[Options]) -> dict[str, Any]:
    """What `page.html.j2` shows of how a run was made, from its environment.json and its config.json: the command, its settings and the
    environment. `kind` is the dataclass of the configuration, which has the defaults that go with the model.
    """
    defaults = kind.chosen(kind.revise({}, {name: [str(value)] for name, value in config.items()}), {})
    settings = []
    for name, value in config.items():
        default = defaults.get(name, value)
        default = list(default) if isinstance(default, tuple) else default
        settings.append((name, _plain(value), "" if value == default else _plain(default)))
    rest = {key: value for key, value in environment.items() if key != "command"}
    return {
        "command": shlex.join(str(word) for word in environment.get("command") or []),
        "settings": settings,
        "environment": _flatten(rest),
    }


def _plain(value: object) -> str:
    if value is None or value == "" or value == []:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _flatten(value: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for key, entry in value.items():
        out += _flatten(entry, f"{prefix}{key}.") if isinstance(entry, dict) else [(f"{prefix}{key}", _plain(entry))]
    return out
