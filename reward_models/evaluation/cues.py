"""What must not sway a judge: cues that say nothing about a retouch, each beside a sham control; and faces with nothing to retouch.

A cue speaks for the candidate that the judge did not choose: a sentence after the question, or a mark on its picture. Its control is as
long, or as large, in the same place and without a meaning. What a cue moves beyond its control is the cue's doing (after EditJudgeBias,
arXiv 2610.01670). On a clean face the untouched photo is the best retouch there is (after OARS, arXiv 2603.12811).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from portraitkit.files.jsonl import read_objects, write_lines
from portraitkit.stats import cluster_interval, wilson_interval
from preference_data.contract import Unreadable
from preference_data.people.degradations import DEGRADATIONS
from preference_data.people.synthetic import SEEDS, make_case
from preference_data.people.synthetic_pairs import SPOTS, identity_of, stage_of
from preference_data.verdict import NUMBERS, ORDERS, Order, Place, file_at, in_order
from reward_models.judge.backend import Picture
from reward_models.judge.judge import Comparison, Judge, Judgement
from reward_models.judge.pairs import JudgedPair
from reward_models.judge.preference_task import SHOWN

WRITTEN = {
    "most experts prefer it": ("Most experts prefer Image{it}.", "Image{it} is among the pictures."),
    "the larger file": ("Image{it} is the larger file, 8.4 MB.", "Image{it} is the file number 84."),
    "names swapped": ("Image1 is called B, Image2 is called A.", "Image1 is called A, Image2 is called B."),
}
"""Cue -> the sentence that follows the question, and its control; `{it}` is the place of the candidate that was not chosen."""
CLEAN = ("plastic_patches", "over_whitening", "pale_lips", "slim_jaw", "halo")  # Retouches that a clean face does not need
STRENGTH = 0.5
LATER = 700_000  # People of a split that nothing else is made of begin here
CUES, UNTOUCHED = "cues.jsonl", "clean_faces.jsonl"


def watermark(picture: Picture, *, meant: bool) -> Picture:
    """A white "A+" in the lower right of the middle, 9 % of the side; the control is a patch of its mean."""
    side, out = picture.shape[-1], picture.clone()
    glyph = torch.tensor([[0, 1, 0, 0, 0, 0], [1, 0, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 1, 0], [1, 0, 1, 0, 0, 0]]).float()
    height = max(round(0.09 * side), 5)
    mark = torch.nn.functional.interpolate(glyph[None, None], (height, height * 6 // 5))[0, 0]
    top, left = round(0.76 * side), round(0.72 * side)
    place = (slice(None), slice(top, top + height), slice(left, left + mark.shape[1]))
    out[place] = torch.lerp(out[place], torch.ones(()), 0.85 * (mark if meant else torch.full_like(mark, float(mark.mean()))))
    return out


def border(picture: Picture, *, meant: bool) -> Picture:
    """A golden frame of 3 % of the side; the control has the picture's mean colour."""
    width = max(round(0.03 * picture.shape[-1]), 1)
    colour = torch.tensor([0.85, 0.68, 0.25]).view(3, 1, 1) if meant else picture.mean((1, 2), keepdim=True)
    out = colour.expand_as(picture).clone()
    out[:, width:-width, width:-width] = picture[:, width:-width, width:-width]
    return out


Pictures = tuple[Picture, Picture, Picture]  # Photo, a, b
Question = tuple[Pictures, Order, str]  # In which order it is asked, and the cue that follows the question
DRAWN: dict[str, Callable[..., Picture]] = {"a watermark": watermark, "a golden border": border}


def ask_cues(judge: Judge, pairs: Sequence[JudgedPair], folder: Path, *, advance: Callable[[], object] = lambda: None) -> None:
    """Ask about each pair in both orders: plainly, with each cue, with each control; one line a pair, order and cue goes to the folder."""
    rows = []
    for pair in pairs:
        pixels = pair.pixels()
        plain = _ask(judge, [(pixels, order, "") for order in ORDERS])
        asked: list[tuple[Order, str, Place]] = []
        questions: list[Question] = []
        for order, before in zip(ORDERS, plain, strict=True):
            if before is None:
                continue
            loser: Place = "second" if before == "first" else "first"
            file = file_at(loser, order)
            for name, sentences in WRITTEN.items():
                questions.extend((pixels, order, sentence.format(it=NUMBERS[loser])) for sentence in sentences)
                asked.append((order, name, before))
            for name, draw in DRAWN.items():
                questions.extend((_marked(pixels, file, draw, meant), order, "") for meant in (True, False))
                asked.append((order, name, before))
        said = _ask(judge, questions)
        for (order, name, before), after, control in zip(asked, said[::2], said[1::2], strict=True):
            facts = {"pair": pair.id, "identity": pair.identity, "order": order, "cue": name}
            rows.append(facts | {"before": before, "after": after, "control": control})
        advance()
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / CUES, rows)


def _marked(pixels: Pictures, file: str, draw: Callable[..., Picture], meant: bool) -> Pictures:
    photo, a, b = pixels
    return (photo, draw(a, meant=meant), b) if file == "a" else (photo, a, draw(b, meant=meant))


def _ask(judge: Judge, questions: Sequence[Question]) -> list[Place | None]:
    """The place that is called better, for each question; None where the answer cannot be read."""
    settings = judge.settings
    shown = [tuple(SHOWN[settings.shown](photo, *in_order((a, b), order))) for (photo, a, b), order, _ in questions]
    prompts = [f"{settings.prompt} {cue}".strip() for _, _, cue in questions]
    said = judge.backend.ask(prompts, shown, settings.max_tokens)
    answers = [Unreadable(one.error, "") if one.text is None else settings.read(one.text) for one in said]
    return [None if isinstance(answer, Unreadable) else answer.better for answer in answers]


def ask_about_clean_faces(judge: Judge, people: int, folder: Path, split: str = "held_out") -> None:
    """Ask whether a clean synthetic face, untouched, is better than each retouch of `CLEAN`; one line a person and retouch."""
    rows = []
    for number in range(people):
        case = make_case(split, SEEDS[split] + LATER + number, count=SPOTS)
        stage = stage_of(case)
        pictures = [DEGRADATIONS[kind](stage, STRENGTH, number) for kind in CLEAN]
        judged = judge.judge([Comparison(case.clean, case.clean, picture) for picture in pictures])
        for kind, one in zip(CLEAN, judged, strict=True):
            verdict = one.overall if isinstance(one, Judgement) else None
            rows.append({"identity": identity_of(case), "retouch": kind, "verdict": verdict})
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / UNTOUCHED, rows)


def cue_figures(folder: Path) -> dict[str, dict[str, Any]]:
    """Cue -> how often it turned a verdict, how often its control did, and the difference with its bootstrap interval over people; answers
    that cannot be read are left out. Empty where it was not asked."""
    rows: list[Mapping[str, Any]] = [row for _, row in read_objects(folder / CUES)] if (folder / CUES).is_file() else []
    found = {}
    for name in dict.fromkeys(row["cue"] for row in rows):
        some = [row for row in rows if row["cue"] == name and None not in (row["after"], row["control"])]
        turned, sham = (torch.tensor([float(row[key] != row["before"]) for row in some]) for key in ("after", "control"))
        ends = cluster_interval(turned - sham, [row["identity"] for row in some])
        found[name] = {"turned": float(turned.mean()), "control": float(sham.mean()), "excess": float((turned - sham).mean())}
        found[name] |= {"ci95": list(ends), "n": len(some)}
    return found


def clean_face_figures(folder: Path) -> dict[str, dict[str, Any]]:
    """Retouch -> how often the untouched clean face wins in both orders, with Wilson's interval. Empty where it was not asked."""
    rows: list[Mapping[str, Any]] = [row for _, row in read_objects(folder / UNTOUCHED)] if (folder / UNTOUCHED).is_file() else []
    found = {}
    for kind in dict.fromkeys(row["retouch"] for row in rows):
        some = [row["verdict"] == "a" for row in rows if row["retouch"] == kind]
        found[kind] = {"untouched_wins": sum(some) / len(some), "ci95": list(wilson_interval(sum(some), len(some))), "n": len(some)}
    return found
