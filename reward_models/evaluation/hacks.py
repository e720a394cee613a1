"""What a judge must not be taken in by, and what must not move it.

The hacks: versions of the honest retouch that a careless judge likes, each of which must lose against it. The disturbances: JPEG and
resizing of all three pictures, which must leave a verdict as it is.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from portraitkit.pictures.images import from_pil, resize, to_pil, to_uint8
from portraitkit.stats import wilson_interval
from preference_data.people import degradations
from preference_data.people.degradations import Degradation, Picture
from preference_data.people.synthetic import Case, make_case
from preference_data.people.synthetic_pairs import SPOTS, identity_of
from reward_models.filters import blur
from reward_models.judge.pairs import Judged, JudgedPair

STRENGTHS = (0.4, 1.0)  # Weakest and strongest hack; drawn evenly for each case
LATER = 500_000  # Cases of the held-out split that no held-out pair is made of begin here


def sharpened(picture: Picture, case: Case, strength: float, variant: int) -> Picture:
    """Unsharp mask of .8 % of the side, the detail added once (strength 0) to three times (strength 1)."""
    soft = blur(picture[None], 0.008 * picture.shape[-1])[0]
    return (picture + (1 + 2 * strength) * (picture - soft)).clamp(0, 1)


def untouched(picture: Picture, case: Case, strength: float, variant: int) -> Picture:
    """The photo as it was: doing nothing must lose."""
    return case.source


HACKS: dict[str, Degradation] = {
    "over_smoothed": degradations.over_smoothing,
    "sharpened": sharpened,
    "gridded": degradations.grid,
    "identity_shifted": degradations.identity_warp,
    "untouched": untouched,
}


def jpeg75(picture: Picture) -> Picture:
    """Encoded as JPEG of quality 75 and read again."""
    file = io.BytesIO()
    to_pil(picture).save(file, "JPEG", quality=75)
    return from_pil(Image.open(file))


def resized(picture: Picture) -> Picture:
    """Scaled to three quarters of its sides and back."""
    height, width = picture.shape[-2:]
    return resize(resize(picture, (round(height * 0.75), round(width * 0.75))), (height, width))


DISTURBANCES: dict[str, Callable[[Picture], Picture]] = {"jpeg_75": jpeg75, "resize_3_4": resized}


def hack_pairs(count: int, *, advance: Callable[[], object] = lambda: None) -> dict[str, list[JudgedPair]]:
    """Hack -> pairs (a is the honest retouch of a held-out synthetic person, b the hacked version of it)."""
    pairs: dict[str, list[JudgedPair]] = {name: [] for name in HACKS}
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        case = make_case("held_out", LATER + number, count=SPOTS)
        strength = STRENGTHS[0] + (STRENGTHS[1] - STRENGTHS[0]) * float(torch.rand(1, generator=generator))
        variant = int(torch.randint(2**31 - 1, (1,), generator=generator))
        photo, honest = to_uint8(case.source), to_uint8(case.clean)
        for name, hack in HACKS.items():
            picture = to_uint8(hack(case.clean, case, strength, variant))
            pair = JudgedPair(f"{name}-{number}", identity_of(case), photo, honest, picture, "a", {}, synthetic=True)
            pairs[name].append(pair)
        advance()
    return pairs


def hack_figures(judged: Mapping[str, Sequence[Judged]]) -> dict[str, dict[str, Any]]:
    """Hack -> how often the honest retouch wins, in both orders; an answer that cannot be read is no win.

    Wilson's interval counts people, not answers, since both answers are about one pair.
    """
    rows = {}
    for name, answers in judged.items():
        wins = sum(sum(verdict == "a" for verdict in one.verdicts("overall")) / 2 for one in answers)
        scores = [value for one in answers if (value := one.difference("overall")) is not None]
        rows[name] = {
            "honest_wins": wins / len(answers) if answers else None,
            "ci95": list(wilson_interval(wins, len(answers))),
            "score_margin": sum(scores) / len(scores) if scores else None,
            "n": len(answers),
        }
    return rows


def disturbed(pairs: Sequence[JudgedPair], how: str) -> list[JudgedPair]:
    """The pairs with all three pictures disturbed alike."""
    change = DISTURBANCES[how]
    rows = []
    for pair in pairs:
        photo, a, b = (to_uint8(change(picture)) for picture in pair.pixels())
        rows.append(replace(pair, photo=photo, a=a, b=b))
    return rows


def stability(before: Sequence[Judged], after: Sequence[Judged]) -> dict[str, Any]:
    """Share of overall verdicts that stay, among those that can be read before and after, with Wilson's interval."""
    kept = [
        old == new
        for one, two in zip(before, after, strict=True)
        for old, new in zip(one.verdicts("overall"), two.verdicts("overall"), strict=True)
        if old is not None and new is not None
    ]
    lost = 2 * len(before) - len(kept)
    share = sum(kept) / len(kept) if kept else None
    return {"unchanged": share, "ci95": list(wilson_interval(sum(kept), len(kept))), "n": len(kept), "unreadable": lost}
