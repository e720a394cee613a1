"""The picture of `extract-makeup`: a photo, a second face, and the second face with the photo's makeup, with labels and colours."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import pad

from portraitkit.pictures.images import to_pil

LABELS = ("photo", "another face", "with the makeup found")
INK, BORDER = (27, 31, 36), (150, 156, 162)
GAP, HEAD, LINE = 16, 44, 40


def draw_try_on(
    photo: Float[Tensor, "3 s s"],
    bare: Float[Tensor, "3 s s"],
    dressed: Float[Tensor, "3 s s"],
    look: Sequence[Mapping[str, Any]],
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw the three faces side by side under their labels, and the items below with a patch of each one's colour.

    Args:
        photo: the face that was asked about, RGB in [0, 1].
        bare: the second face.
        dressed: the same with the look.
        look: items, see `preference_data.people.makeup`.

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
