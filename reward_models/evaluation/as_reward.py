"""What makes or unmakes a judge as a reward: cues that say nothing about a retouch, faces with nothing to retouch, groups of rollouts.

A cue speaks for the candidate that the judge did not choose: a sentence after the question, or a mark on its picture. Its control is as
long, or as large, in the same place and without a meaning. What a cue moves beyond its control is the cue's doing (after EditJudgeBias,
arXiv 2610.01670). On a clean face the untouched photo is the best retouch there is (after OARS, arXiv 2603.12811).

Pairs of different methods say little of how a judge ranks what one policy makes: a policy's own samples differ by much less. So it ranks
groups of 16 rollouts of the embedded retoucher, of unseen people, as `make-preferences build --generators rollout` makes them, bases and
aligned policies in turn. The truth is that of the verifiable rewards.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from portraitkit.files.jsonl import read_objects, write_lines
from portraitkit.stats import cluster_interval, group_rank, ranks_in_groups, wilson_interval
from preference_data.contract import Unreadable
from preference_data.generators import NEAR, Candidate, GeneratorOptions, open_generators, open_subject
from preference_data.people.degradations import DEGRADATIONS
from preference_data.people.photos import PhotoRow
from preference_data.people.synthetic import SEEDS, make_case
from preference_data.people.synthetic_pairs import SPOTS, identity_of
from preference_data.schema import DIMENSIONS
from preference_data.verdict import NUMBERS, ORDERS, Order, Place, file_at, in_order, winner
from reward_models.judge.backends import Picture
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
CLEAN_FROM, RANKED_FROM = 700_000, 600_000  # People of a split that nothing else is made of begin here: clean faces, and those ranked
CUES, UNTOUCHED, FILE = "cues.jsonl", "clean_faces.jsonl", "rollouts.jsonl"
GROUP = 16
PROMPT = "Beautify this person's face while maintaining a natural and realistic appearance"


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
                for meant in (True, False):
                    photo, a, b = pixels
                    marked = (photo, draw(a, meant=meant), b) if file == "a" else (photo, a, draw(b, meant=meant))
                    questions.append((marked, order, ""))
                asked.append((order, name, before))
        said = _ask(judge, questions)
        for (order, name, before), after, control in zip(asked, said[::2], said[1::2], strict=True):
            facts = {"pair": pair.id, "identity": pair.identity, "order": order, "cue": name}
            rows.append(facts | {"before": before, "after": after, "control": control})
        advance()
    write_lines(folder / CUES, rows)


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
        case = make_case(split, SEEDS[split] + CLEAN_FROM + number, count=SPOTS)
        pictures = [DEGRADATIONS[kind](case.clean, case, STRENGTH, number) for kind in CLEAN]
        judged = judge.judge([Comparison(case.clean, case.clean, picture) for picture in pictures])
        for kind, one in zip(CLEAN, judged, strict=True):
            verdict = one.overall if isinstance(one, Judgement) else None
            rows.append({"identity": identity_of(case), "retouch": kind, "verdict": verdict})
    write_lines(folder / UNTOUCHED, rows)


def _kept(path: Path) -> list[dict[str, Any]]:
    """What was asked, nothing where it was not."""
    return [row for _, row in read_objects(path)] if path.is_file() else []


def cue_figures(folder: Path) -> dict[str, dict[str, Any]]:
    """Cue -> how often it turned a verdict, how often its control did, and the difference with its bootstrap interval over people; answers
    that cannot be read are left out. Empty where it was not asked."""
    rows = _kept(folder / CUES)
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
    rows = _kept(folder / UNTOUCHED)
    found = {}
    for kind in dict.fromkeys(row["retouch"] for row in rows):
        some = [row["verdict"] == "a" for row in rows if row["retouch"] == kind]
        found[kind] = {"untouched_wins": sum(some) / len(some), "ci95": list(wilson_interval(sum(some), len(some))), "n": len(some)}
    return found


def rank_rollouts(
    judge: Judge, folder: Path, people: int, split: str = "held_out", *, advance: Callable[[], object] = lambda: None
) -> None:
    """Ask a judge about a group of each of `people` synthetic people, and keep what it said in the folder, one line a group."""
    (generator,) = open_generators((f"rollout:{GROUP}",), GeneratorOptions(PROMPT, 0, "cpu"))
    rows = []
    for number in range(people):
        subject, identity = open_subject(PhotoRow(f"{split}-{number}", split, "", {}, None, None, SEEDS[split] + RANKED_FROM + number), 128)
        group = generator.candidates(subject, GROUP, number)[:GROUP]  # the photo itself comes last
        rows.append({"identity": identity, **ask_group(judge, subject.case.source, group)})
        advance()
    write_lines(folder / FILE, rows)


def ask_group(judge: Judge, photo: Picture, group: Sequence[Candidate]) -> dict[str, Any]:
    """Rank correlations inside a group, overall and by dimension; and of each two neighbours in it the difference of their truth, the
    verdict (None where it cannot be read), whether it changed with the order, and whose mean score is higher."""
    alone = judge.judge([Comparison(photo, one.pixels, photo) for one in group])
    beside = judge.judge([Comparison(photo, a.pixels, b.pixels) for a, b in zip(group[::2], group[1::2], strict=True)])

    scores = [one.scores | {"overall": one.means} if isinstance(one, Judgement) else {} for one in alone]
    truths, ranks = [one.truth or {} for one in group], {}
    for name in ("overall", *DIMENSIONS):
        judged = torch.tensor([some[name][0] if some else math.nan for some in scores])
        ranks[name] = ranks_in_groups(judged, torch.tensor([truth[name] for truth in truths]), [0] * len(group))
    couples = []
    for one, a, b in zip(beside, truths[::2], truths[1::2], strict=True):
        said = (one.overall, one.flipped, winner(*one.means)) if isinstance(one, Judgement) else (None, False, None)
        couples.append((a["overall"] - b["overall"], *said))
    return {"policy": group[0].origin.model, "ranks": ranks, "couples": couples}


def rollout_figures(folder: Path) -> dict[str, Any]:
    """What `rank_rollouts` found, empty where it was not asked: `rank` by name; `apart`, the pairs of one group whose truth differs by more
    than the median, and how often the judge is right by its verdict and by its scores; `alike`, those that differ by no more than `NEAR`,
    and how often it decides and how often it turns with the order."""
    rows = _kept(folder / FILE)
    if not rows:
        return {}
    ranks = {name: asdict(group_rank([rank for row in rows for rank in row["ranks"][name]])) for name in ("overall", *DIMENSIONS)}
    couples = [(*couple, row["identity"]) for row in rows for couple in row["couples"]]
    median = float(torch.tensor([abs(couple[0]) for couple in couples]).median())
    apart = [(said == winner(lead, 0), scored == winner(lead, 0), who) for lead, said, _, scored, who in couples if abs(lead) > median]
    alike = [(said, flipped) for lead, said, flipped, *_ in couples if abs(lead) <= NEAR and said is not None]
    right, by_scores = (torch.tensor([float(one[place]) for one in apart]) for place in (0, 1))
    people = [who for *_, who in apart]
    decided, flips = sum(said != "tie" for said, _ in alike), sum(flipped for _, flipped in alike)
    return {
        "rank": ranks,
        "people": len(rows),
        "apart": {
            "right": float(right.mean()),
            "ci95": list(cluster_interval(right, people)),
            "right_by_scores": float(by_scores.mean()),
            "right_by_scores_ci95": list(cluster_interval(by_scores, people)),
            "n": len(apart),
            "above": median,
        },
        "alike": {
            "decided": decided / len(alike) if alike else None,
            "flips": flips / len(alike) if alike else None,
            "flips_ci95": list(wilson_interval(flips, len(alike))),
            "n": len(alike),
        },
    }
