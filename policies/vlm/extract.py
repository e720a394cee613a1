"""What `extract-makeup` does: one face, one greedy answer, its look as JSON and on a second face."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import ImageDraw, ImageFont
from rich.console import Console
from torch import Tensor
from torch.nn.functional import pad

from policies.vlm.config import ExtractConfig
from policies.vlm.tasks.makeup import LIPS, TASK, read_lips, read_look
from portraitkit.errors import ConfigError, DataError, FaceError
from portraitkit.faces.align import align_face
from portraitkit.faces.detect import detect_faces
from portraitkit.faces.mesh import require_mesh
from portraitkit.faces.portraits import bundled_portraits
from portraitkit.files.atomic import check_writable, write_text
from portraitkit.pictures.images import read_image, to_pil, write_image
from portraitkit.vlm.generate import Completion, complete
from portraitkit.vlm.model import be_quiet, check_adapter, check_device, load_model, load_processor, merge_adapter, model_path
from portraitkit.vlm.rows import Row
from portraitkit.vlm.task import asked_briefly
from preference_data.people.makeup import PARAMETERS, check_look, render_makeup
from preference_data.people.makeup_shapes import SHAPES, shapes_of

SHOWN = 512  # Side of a face in the try-on, in pixels
EMBEDDED_FACE = "astronaut"  # without glasses
FILES = ("makeup.json", "try_on.png")
UNREADABLE = 1
Look = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class OneFace:
    """The one face of a photo."""

    pixels: Float[Tensor, "3 h w"]  # the photo, RGB in [0, 1]
    mesh: Float[Tensor, "468 3"]  # x, y, z in pixels of the photo

    def aligned(self, size: int) -> tuple[Float[Tensor, "3 s s"], Float[Tensor, "468 3"]]:
        """The face alone, eyes level, in a square, and its mesh there."""
        crop = align_face(self.pixels, self.mesh, size)
        return crop.pixels, crop.to_crop(self.mesh)


def run_extraction(config: ExtractConfig, command: list[str]) -> int:
    """Ask, print the look, write makeup.json and try_on.png.

    Returns:
        The exit code: 0, or 1 where the answer cannot be read as makeup; then nothing is written.
    """
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    check_output(config.folder, overwrite=config.overwrite)
    check_device(config.device)
    model_path(config.model)
    check_adapter(config.adapter)
    with torch.no_grad():
        photo, notes = open_one_face(config.photo, config.min_face)
        embedded = bundled_portraits()[EMBEDDED_FACE]
        face = open_one_face(config.face, config.min_face) if config.face else (OneFace(embedded, require_mesh(embedded)[1]), ())
    other, other_notes = face
    for note in (*notes, *other_notes):
        console.print(f"note: {note}")
    be_quiet()
    with console.status(f"asking {config.model}"):
        prompt, answer = ask(config, photo)
    look = read_answer(config, answer)
    if isinstance(look, str):
        print(f"error: the answer is no makeup that can be read ({look}): {json.dumps(answer.text)}", file=sys.stderr)
        return UNREADABLE
    found = {
        "photo": str(config.photo),
        "photo_sha256": sha256(config.photo.read_bytes()).hexdigest(),
        "look": [{**item, **{name: getattr(SHAPES[item["shape"]], name) for name in PARAMETERS}} for item in look],
        "answer": answer.text,
        "model": config.model,
        "adapter": config.adapter,
        "prompt": prompt,
        "face": str(config.face) if config.face else f"embedded portrait {EMBEDDED_FACE}",
        "command": [Path(command[0]).name, *command[1:]],
    }
    write_result(config, found, photo, other, look)
    print(json.dumps(look))
    if not look:
        console.print(f"no makeup was found on {config.photo}")
    console.print(f"{config.folder / FILES[1]}: photo, the other face, the other face with this makeup")
    return 0


def check_output(folder: Path, *, overwrite: bool) -> None:
    """ConfigError for a folder that cannot take the result, before anything is read: a file, one with a result or not to be written."""
    above = next(path for path in (folder, *folder.parents) if path.exists())
    if not above.is_dir():
        raise ConfigError(f"--output-dir {folder}: {above} is a file; give a folder")
    taken = next((path for name in FILES if (path := folder / name).exists()), None)
    if taken is not None and not overwrite:
        raise ConfigError(f"{taken}: exists already; add --overwrite or give another --output-dir")
    try:
        check_writable(folder)
    except OSError as error:
        raise ConfigError(f"--output-dir {folder}: cannot be written ({error.strerror}); give another") from error


def open_one_face(path: Path, min_face: int) -> tuple[OneFace, tuple[str, ...]]:
    """The face of a photo and what the reader changed or dropped, one line each."""
    image = read_image(path)
    large = [face for face in detect_faces(image.pixels) if face.size >= min_face]
    if len(large) > 1:
        places = ", ".join(f"({sum(face.box[::2]) / 2:.0f}, {sum(face.box[1::2]) / 2:.0f})" for face in large)
        raise FaceError(f"{path}: {len(large)} faces, around {places} px: one is needed; crop the picture to it")
    return OneFace(image.pixels, require_mesh(image.pixels, path, min_size=min_face)[1]), image.warnings


def ask(config: ExtractConfig, photo: OneFace) -> tuple[str, Completion]:
    """The prompt, and the model's greedy answer about the aligned face."""
    task = LIPS if config.lips_only else TASK
    brief = config.prompt == "brief" or (config.prompt == "auto" and asked_briefly(config.model))
    prompt = task.brief if brief else task.prompt
    size = config.size or (128 if brief else 512)
    processor = load_processor(config.model, max_pixels=config.max_pixels)
    model = load_model(config.model, dtype=config.dtype, device=config.device)
    if config.adapter is not None:
        model = merge_adapter(model, config.adapter)
    with torch.no_grad():
        row = Row((photo.aligned(size)[0],), None, "", {})
    return prompt, complete(model, processor, prompt, [row], max_tokens=config.max_tokens)[0][0]


def read_answer(config: ExtractConfig, answer: Completion) -> Look | str:
    """The items of an answer that keeps the form throughout and can be rendered, or why it is none."""
    shape = shapes_of("lips")[0]
    look = read_lips(answer.text, [{"shape": shape, "color": "#000000"}]) if config.lips_only else read_look(answer.text)
    if look is None:
        wanted = '{"color": "#RRGGBB"}' if config.lips_only else 'a list of up to 3 {"shape": .., "color": "#RRGGBB"}'
        cut = f"; it was cut at --max-tokens {config.max_tokens}" if answer.cut else ""
        return f"not {wanted} between <answer> and </answer>{cut}"
    look = [{"shape": item["shape"], "color": item["color"].upper()} for item in look]
    try:
        check_look(look)
    except DataError as error:
        return str(error)
    return look


def write_result(config: ExtractConfig, found: dict[str, Any], photo: OneFace, other: OneFace, look: Look) -> None:
    """Draw first, then write both files, each in one piece."""
    with torch.no_grad():
        bare, mesh = other.aligned(SHOWN)
        picture = draw_try_on(photo.aligned(SHOWN)[0], bare, render_makeup(bare, mesh, look), look)
    try:
        config.folder.mkdir(parents=True, exist_ok=True)
        write_image(config.folder / FILES[1], picture)
        write_text(config.folder / FILES[0], json.dumps(found, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"--output-dir {config.folder}: cannot be written ({error.strerror}); give another") from error


LABELS = ("photo", "another face", "with the makeup found")
INK, BORDER = (27, 31, 36), (150, 156, 162)
GAP, HEAD, LINE = 16, 44, 40


def draw_try_on(
    photo: Float[Tensor, "3 s s"], bare: Float[Tensor, "3 s s"], dressed: Float[Tensor, "3 s s"], look: Sequence[Mapping[str, Any]]
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw three faces (RGB in [0, 1]) side by side under their labels, and the items below with a patch of each one's colour.

    Returns:
        8-bit RGB.
    """
    faces = torch.cat([pad(face, (0, GAP, 0, 0), value=1.0) for face in (photo, bare, dressed)], 2)[:, :, :-GAP]
    sheet = to_pil(pad(faces, (GAP, GAP, HEAD, GAP + LINE * len(look)), value=1.0))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=22)
    size = photo.shape[-1]
    for place, label in enumerate(LABELS):
        draw.text((GAP + place * (size + GAP), HEAD / 2), label, INK, font, anchor="lm")
    for place, item in enumerate(look):
        top = HEAD + size + GAP + LINE * place
        draw.rectangle((GAP, top, GAP + 2 * LINE, top + LINE - 10), item["color"], BORDER)
        draw.text((2 * GAP + 2 * LINE, top + (LINE - 10) / 2), f"{item['shape']}  {item['color']}", INK, font, anchor="lm")
    return np.asarray(sheet)
