"""How a judge ranks what one policy makes: groups of 16 rollouts of the embedded retoucher, of unseen people.

Pairs of different methods say little of that: a policy's own samples differ by much less. The truth is that of the verifiable rewards; the
groups are those of `make-preferences build --generators rollout`, bases and aligned policies in turn.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from portraitkit.files.jsonl import read_objects, write_lines
from portraitkit.stats import cluster_interval, group_rank, ranks_in_groups, wilson_interval
from preference_data.generators import NEAR, Candidate, GeneratorOptions, open_generators, open_subject
from preference_data.people.photos import PhotoRow
from preference_data.people.synthetic import SEEDS
from preference_data.schema import DIMENSIONS
from preference_data.verdict import winner
from reward_models.judge.backend import Picture
from reward_models.judge.judge import Comparison, Judge, Judgement

GROUP = 16
LATER = 600_000  # People of a split that no pair and no hack is made of begin here
FILE = "rollouts.jsonl"
PROMPT = "Beautify this person's face while maintaining a natural and realistic appearance"


def rank_rollouts(
    judge: Judge, folder: Path, people: int, split: str = "held_out", *, advance: Callable[[], object] = lambda: None
) -> None:
    """Ask a judge about a group of each of `people` synthetic people, and keep what it said in the folder, one line a group."""
    (generator,) = open_generators((f"rollout:{GROUP}",), GeneratorOptions(PROMPT, 0, "cpu"))
    rows = []
    for number in range(people):
        subject, identity = open_subject(PhotoRow(f"{split}-{number}", split, "", {}, None, None, SEEDS[split] + LATER + number), 128)
        group = generator.candidates(subject, GROUP, number)[:GROUP]  # the photo itself comes last
        rows.append({"identity": identity, **ask_group(judge, subject.case.source, group)})
        advance()
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / FILE, rows)


def ask_group(judge: Judge, photo: Picture, group: Sequence[Candidate]) -> dict[str, Any]:
    """Rank correlations inside a group, overall and by dimension; and of each two neighbours in it the difference of their truth, the
    verdict (None where it cannot be read), whether it changed with the order, and whose mean score is higher."""
    alone = judge.judge([Comparison(photo, one.pixels, photo) for one in group])
    pairs = list(zip(group[::2], group[1::2], strict=True))
    beside = judge.judge([Comparison(photo, a.pixels, b.pixels) for a, b in pairs])

    def column(name: str) -> Tensor:
        means = [one.means[0] if name == "overall" else one.scores[name][0] for one in alone if isinstance(one, Judgement)]
        found = iter(means)
        return torch.tensor([next(found) if isinstance(one, Judgement) else math.nan for one in alone])

    truths = [one.truth or {} for one in group]
    ranks = {
        name: ranks_in_groups(column(name), torch.tensor([truth[name] for truth in truths]), [0] * len(group))
        for name in ("overall", *DIMENSIONS)
    }
    couples = [
        (_of(a) - _of(b), one.overall, one.flipped, winner(*one.means))
        if isinstance(one, Judgement)
        else (_of(a) - _of(b), None, False, None)
        for (a, b), one in zip(pairs, beside, strict=True)
    ]
    return {"policy": group[0].origin.model, "ranks": ranks, "couples": couples}


def _of(candidate: Candidate) -> float:
    return candidate.truth["overall"] if candidate.truth else math.nan


def rollout_figures(folder: Path) -> dict[str, Any]:
    """What `rank_rollouts` found, empty where it was not asked: `rank` by name; `apart`, the pairs of one group whose truth differs by more
    than the median, and how often the judge is right by its verdict and by its scores; `alike`, those that differ by no more than `NEAR`,
    and how often it decides and how often it turns with the order."""
    if not (folder / FILE).is_file():
        return {}
    rows: list[Mapping[str, Any]] = [row for _, row in read_objects(folder / FILE)]
    ranks = {name: group_rank([rank for row in rows for rank in row["ranks"][name]]).to_dict() for name in ("overall", *DIMENSIONS)}
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
