"""Embedded rows of the two makeup tasks: looks rendered on synthetic people (`preference_data.people.synthetic`)."""

import random
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import torch

from portraitkit.errors import DataError, nearest
from preference_data.people.makeup import BARE, draw_lips, draw_look, render_makeup
from preference_data.people.synthetic import SPLITS, Person, make_person

SIZE = 128


def make_row(split: str, seed: int, *, lips_only: bool = False, draw: Callable[[torch.Generator], Person] | None = None) -> dict[str, Any]:
    """One face with makeup, or bare, and the truth about it.

    Neither people nor product colours are shared between splits; a seed's person and look have nothing to do with those of the
    same seed in another split.

    Args:
        split: train, validation or held_out.
        seed: equal ones give equal rows.
        lips_only: a lipstick of the published shape and nothing else.
        draw: gives the person, `SIZE` pixels wide; if not given, a synthetic one of the split.

    Returns:
        `image` (RGB, 3 x 128 x 128, [0, 1]), `solution` (items, in the order lips, blush, eyeshadow), and where it comes from:
        `synthetic` (True), `split`, `seed`, `morph` (who it is, see `preference_data.people.synthetic`).

    Raises:
        DataError: no such split.
    """
    if split not in SPLITS:
        raise DataError(f"split {split!r}: unknown{nearest(split, SPLITS)}; use {', '.join(SPLITS)}")
    rng = random.Random(_digest(split, seed))
    person = draw(torch.Generator().manual_seed(_digest(split, seed))) if draw else bare_person(split, seed)
    look = draw_lips(rng, split=split) if lips_only else draw_look(rng, split=split, bare=BARE)
    image = render_makeup(person.clean, person.mesh, look)
    return {"image": image, "solution": look, "synthetic": True, "split": split, "seed": seed, "morph": person.morph}


def bare_person(split: str, seed: int) -> Person:
    """The synthetic person that such a row shows; `clean` is the face without makeup."""
    return make_person(split, torch.Generator().manual_seed(_digest(split, seed)), size=SIZE)


def _digest(split: str, seed: int) -> int:
    return int.from_bytes(sha256(f"makeup {split} {seed}".encode()).digest()[:7])
