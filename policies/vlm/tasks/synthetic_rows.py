"""Embedded rows of the makeup and emotion tasks: looks and action units rendered on synthetic people (`preference_data.people.synthetic`).

Neither people nor product colours are shared between splits; a seed's person, look and expression have nothing to do with those of the same
seed in another split or task.
"""

import random
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Any

import torch

from portraitkit.errors import DataError, nearest
from preference_data.people.calm_faces import calm_stage
from preference_data.people.expressions import draw_expression, perform
from preference_data.people.makeup import BARE, draw_lips, draw_look, render_makeup
from preference_data.people.synthetic import SPLITS, Person, make_person

SIZE = 128
Draw = Callable[[torch.Generator], Person]  # Gives a person, `SIZE` pixels wide, in place of a synthetic one of the split


def makeup_row(split: str, seed: int, *, lips_only: bool = False, draw: Draw | None = None) -> dict[str, Any]:
    """One face with makeup, or bare, and the truth about it; `lips_only` is a lipstick of the published shape and nothing else. Equal
    splits and seeds give equal rows.

    Returns:
        `image` (RGB, 3 x 128 x 128, [0, 1]), `solution` (items, in the order lips, blush, eyeshadow), and where it comes from:
        `synthetic` (True), `split`, `seed`, `morph` (who it is, see `preference_data.people.synthetic`).
    """
    digest = _digest("makeup", split, seed)
    person = draw(torch.Generator().manual_seed(digest)) if draw else bare_person(split, seed)
    look = draw_lips(random.Random(digest), split=split) if lips_only else draw_look(random.Random(digest), split=split, bare=BARE)
    return {"image": render_makeup(person.clean, person.mesh, look), "solution": look, **_origin(split, seed, person)}


def bare_person(split: str, seed: int) -> Person:
    """The synthetic person that such a row shows; `clean` is the face without makeup."""
    return make_person(split, torch.Generator().manual_seed(_digest("makeup", split, seed)), size=SIZE)


def emotion_row(split: str, seed: int, *, draw: Draw | None = None) -> dict[str, Any]:
    """One face with an expression and the truth about it: what was rendered on a face at rest, which `draw` gives, too.

    Returns:
        `image` (RGB, 3 x 128 x 128, [0, 1]), `AUs` (such as ["AU6", "AU12"]), `labels` (one emotion), `target` (the completion to
        imitate), `intensities` (by unit, in [0, 1]), and where it comes from, as in `makeup_row`.
    """
    digest = _digest("emotion", split, seed)
    generator = torch.Generator().manual_seed(digest)
    person = draw(generator) if draw else make_person(split, generator, size=SIZE, faces=calm_stage())
    emotion, units = draw_expression(random.Random(digest))
    image, _ = perform(person.clean, person.mesh, units)
    return {
        "image": image,
        "AUs": [f"AU{unit}" for unit in units],
        "labels": [emotion],
        "target": make_target(units, emotion),
        "intensities": {f"AU{unit}": round(intensity, 4) for unit, intensity in units.items()},
        **_origin(split, seed, person),
    }


def make_target(units: Iterable[int], emotion: str) -> str:
    """A short completion that earns the maximum: each unit as "(AU4)", and the emotion that they show.

    >>> make_target([6, 12], "happiness")
    '<think>(AU6) (AU12) show happiness</think><answer>happiness</answer>'
    """
    named = " ".join(f"(AU{unit})" for unit in sorted(units)) or "no units"
    return f"<think>{named} show {emotion}</think><answer>{emotion}</answer>"


def _digest(task: str, split: str, seed: int) -> int:
    if split not in SPLITS:
        raise DataError(f"split {split!r}: unknown{nearest(split, SPLITS)}; use {', '.join(SPLITS)}")
    return int.from_bytes(sha256(f"{task} {split} {seed}".encode()).digest()[:7])


def _origin(split: str, seed: int, person: Person) -> dict[str, Any]:
    return {"synthetic": True, "split": split, "seed": seed, "morph": person.morph}
