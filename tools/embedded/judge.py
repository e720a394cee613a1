"""The embedded judge: the embedded model, its language part taught further on pairs alone.

Of the five dimensions, blemishes are the hardest to see: marks of a few pixels, whose number alone decides. The score of a pair says
nothing of where they are. So, beside the answer and its scores, a linear head on the tokens of each difference picture is taught how much
blemish was removed and how much is left there.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from preference_data.people.degradations import share_left
from preference_data.people.synthetic import make_case
from preference_data.people.synthetic_pairs import SPOTS, draw_plan
from reward_models.judge.judge import Comparison, calibrate, load_judge
from reward_models.judge.pairs import synthetic_pair
from reward_models.judge.preference_task import CROP, SIDE
from reward_models.judge.settings import EMBEDDED, write_settings
from tools.embedded.muon import MuonAdamW
from tools.embedded.vlm_facts import FACTS
from tools.embedded.vlm_read import Lesson, read

CELL = 16
"""Pixels of a token's side."""
GRID = CROP // CELL
CALIBRATION = 200
"""Validation pairs that the temperature is fitted on."""
TYPICAL_MASS = 8.0
"""Opacity summed over a cell's pixels, where it holds a blemish."""


@dataclass(frozen=True)
class JudgePhase:
    """How the judge is taught.

    Attributes:
        steps: updates.
        learning_rate: of embeddings, norms and heads; it and the next rise for 30 updates, then fall in a straight line.
        muon_learning_rate: of the matrices.
        until: share of both that is left at the end.
        mirrored: every second update takes the pairs in a mirror, so that they are not learned by heart.
        noise: standard deviation of what is added to the tower's tokens, whose own is 1, for the same reason.
        batch: pairs of an update, in one order or the other.
    """

    steps: int
    learning_rate: float
    muon_learning_rate: float
    until: float = 0.0
    mirrored: bool = False
    noise: float = 0.0
    batch: int = 64


def blemish_cells(split: str, seed: int) -> Float[Tensor, "2 2 cells"]:
    """Where the blemishes of `preference_task.make_row`'s pair are, as its two pictures show them.

    Returns:
        For the candidate shown first and second: opacity removed and opacity left, summed over each token's pixels, row by row.
    """
    case = make_case(split, seed, size=SIDE, count=SPOTS)
    plan = draw_plan(split, torch.Generator().manual_seed(seed + 2**40))
    edge = (SIDE - CROP) // 2
    found = []
    for side in "ab" if seed % 2 == 0 else "ba":
        strength = plan.faults(side).get("left_blemishes", 0.0)
        share = share_left(case.opacity, strength, plan.variant) if strength > 0 else torch.zeros_like(case.opacity)
        both = torch.cat([case.opacity * (1 - share), case.opacity * share])[:, edge : edge + CROP, edge : edge + CROP]
        found.append(both.unflatten(2, (GRID, CELL)).unflatten(1, (GRID, CELL)).sum((2, 4)).flatten(1))
    return torch.stack(found)


def open_cells(keep: Path, count: int, first: int, console: Console) -> Float[Tensor, "n 2 2 cells"]:
    """`blemish_cells` of training pairs, kept in a file."""
    if keep.is_file():
        return torch.load(keep, weights_only=True)
    started = time.monotonic()
    with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = torch.stack(list(pool.map(partial(blemish_cells, "train"), range(first, first + count), chunksize=20)))
    console.print(f"cells of {count} pairs in {time.monotonic() - started:.0f} s", highlight=False)
    torch.save(found, keep)
    return found


def make_heads(width: int, scores: torch.nn.Linear) -> torch.nn.ModuleDict:
    """The head of the scores, as the shared phases left it, and a new one that finds blemishes."""
    return torch.nn.ModuleDict({"scores": scores, "spots": torch.nn.Linear(width, 2)})


def teach_judge(
    model: Any, heads: torch.nn.ModuleDict, lessons: Sequence[Lesson], cells: Tensor, phase: JudgePhase, keep: Path, console: Console
) -> None:
    """Teach everything but the tower, on pairs in both orders.

    Args:
        model: as the phase before left it.
        heads: from `make_heads`, likewise.
        lessons: of n pairs, then the same with their pictures exchanged, as `pretrain_read.make_lessons` makes it; these pairs,
            and the same in a mirror.
        cells: of the first pairs, from `open_cells`.
        phase: how long and how fast.
        keep: file that the finished state is written to, and read from.
        console: for a line every 50 updates: losses of answers, scores and cells.
    """
    if keep.is_file():
        state = torch.load(keep, weights_only=True)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        return
    head, spots = heads["scores"], heads["spots"]
    facts, pairs = FACTS["preference"], len(lessons[0].answers) // 2
    named = [(name, value) for name, value in model.named_parameters() if "visual" not in name]
    named += [(f"head.{name}", value) for name, value in heads.named_parameters()]
    optimizer = MuonAdamW(named, muon_learning_rate=phase.muon_learning_rate, learning_rate=phase.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 30) * max(0.02, 1 - (1 - phase.until) * step / phase.steps)
    )
    tokens = (lessons[0].prompt == model.config.image_token_id).nonzero()[:, 0]
    where = tokens.view(2, 2, GRID * GRID)[:, 1].flatten()  # a candidate's tokens, then those of its difference below it
    truths = [(torch.cat([cells, cells.flip(1)]) / TYPICAL_MASS).sqrt()]
    truths.append(truths[0].unflatten(-1, (GRID, GRID)).flip(-1).flatten(-2))
    started, sums = time.monotonic(), torch.zeros(3)
    for step in range(1, phase.steps + 1):
        index = torch.randint(2 * pairs, (phase.batch,))
        turned = int(phase.mirrored and step % 2 == 0)
        lesson, truth = lessons[turned], truths[turned]
        answers, states = read(model, lesson, index, noise=phase.noise)
        scores = facts.loss(head(states[:, len(lesson.prompt) - 1]), lesson.facts[index])
        known = index % pairs < len(cells)
        row = index[known] % pairs + (index[known] >= pairs) * len(cells)
        guessed = spots(states[known][:, where]).unflatten(1, (2, -1)).transpose(2, 3)
        removed = 3 * F.smooth_l1_loss(guessed, truth[row], beta=0.1) if known.any() else torch.zeros(())
        optimizer.zero_grad()
        (2 * answers + scores + removed).backward()
        torch.nn.utils.clip_grad_norm_([value for _, value in named], 1.0)
        optimizer.step()
        schedule.step()
        sums = sums + torch.stack([answers, scores, removed]).detach() / 50
        if step % 50 == 0:
            figures = "  ".join(f"{name} {float(value):.3f}" for name, value in zip(("answers", "scores", "cells"), sums, strict=True))
            console.print(f"judge {step}/{phase.steps}, {time.monotonic() - started:.0f} s  {figures}", highlight=False, soft_wrap=True)
            sums = torch.zeros(3)
    torch.save({"model": model.state_dict(), "heads": heads.state_dict()}, keep)


def calibrate_embedded(folder: Path, console: Console) -> None:
    """Write `judge.json` beside the judge's weights, its temperature fitted on synthetic validation pairs."""
    write_settings(folder, EMBEDDED)
    pairs = [synthetic_pair("validation", seed) for seed in range(CALIBRATION)]
    comparisons = [Comparison(*pair.pixels()) for pair in pairs]
    settings = calibrate(load_judge(str(folder)), comparisons, [pair.overall or "tie" for pair in pairs])
    write_settings(folder, settings)
    console.print(f"calibrated: temperature {settings.temperature:.2f}", highlight=False)
