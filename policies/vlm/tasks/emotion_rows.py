"""Embedded rows of the emotion task: action units performed by synthetic people (`preference_data.people.expressions`)."""

import random
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Any

import torch

from portraitkit.errors import DataError, nearest
from preference_data.people.calm_faces import calm_stage
from preference_data.people.expressions import draw_expression, perform
from preference_data.people.synthetic import SPLITS, Person, make_person

SIZE = 128


def make_row(split: str, seed: int, *, draw: Callable[[torch.Generator], Person] | None = None) -> dict[str, Any]:
    """One face with an expression and the truth about it: what was rendered on a face at rest.

    People are not shared between splits; a seed's person and expression have nothing to do with those of the same seed in another
    split. `draw` gives a person at rest, `SIZE` pixels wide, in place of a synthetic one.

    Returns:
        `image` (RGB, 3 x 128 x 128, [0, 1]), `AUs` (such as ["AU6", "AU12"]), `labels` (one emotion), `target` (the completion to
        imitate), and where it comes from: `intensities` (by unit, in [0, 1]), `synthetic` (True), `split`, `seed`, `morph` (who it
        is, see `preference_data.people.synthetic`).

    Raises:
        DataError: no such split.
    """
    if split not in SPLITS:
        raise DataError(f"split {split!r}: unknown{nearest(split, SPLITS)}; use {', '.join(SPLITS)}")
    digest = int.from_bytes(sha256(f"emotion {split} {seed}".encode()).digest()[:7])
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
        "synthetic": True,
        "split": split,
        "seed": seed,
        "morph": person.morph,
    }


def make_target(units: Iterable[int], emotion: str) -> str:
    """A short completion that earns the maximum: each unit as "(AU4)", and the emotion that they show.

    >>> make_target([6, 12], "happiness")
    '<think>(AU6) (AU12) show happiness</think><answer>happiness</answer>'
    """
    named = " ".join(f"(AU{unit})" for unit in sorted(units)) or "no units"
    return f"<think>{named} show {emotion}</think><answer>{emotion}</answer>"
