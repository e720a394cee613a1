"""The embedded judge: the embedded model, its language part taught further on pairs alone. About half an hour on one core.

    python -m tools.embedded.judge

Of the five dimensions, blemishes are the hardest to see: marks of a few pixels, whose number alone decides. The score of a pair says
nothing of where they are. So, beside the answer and its scores, a linear head on the tokens of each difference picture is taught how much
blemish was removed and how much is left there.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from portraitkit.cli import run_command
from portraitkit.config import Options, load_config
from portraitkit.vlm.model import load_model, load_processor
from preference_data.people.degradations import share_left
from preference_data.people.synthetic import make_case
from preference_data.people.synthetic_pairs import SPOTS, draw_plan
from reward_models.judge.judge import Comparison, calibrate, load_judge
from reward_models.judge.pairs import synthetic_pair
from reward_models.judge.preference_task import CROP, SIDE
from reward_models.judge.settings import EMBEDDED, write_settings
from tools.embedded.muon import MuonAdamW
from tools.embedded.vlm import open_rows, share, tokens_of, validate, write
from tools.embedded.vlm_facts import FACTS
from tools.embedded.vlm_read import Lesson, make_lessons, read

PAIRS = 16_000
"""Training pairs; with 4000, what is learned of blemishes holds for these alone."""
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


JUDGE = (
    JudgePhase(400, 1e-3, 6e-3, until=0.6),
    JudgePhase(800, 8e-4, 4.8e-3, mirrored=True, noise=0.1),
)
"""Two seconds an update on one core."""
WITH_CELLS = 8000
"""Pairs, the first ones, that say where their blemishes are."""


@dataclass(frozen=True)
class JudgeConfig(Options):
    """Teach the embedded judge."""

    model_dir: str = "portraitkit/vlm/embedded"
    """The model that it is made from."""
    output_dir: str = "reward_models/embedded"
    """Where the judge goes."""
    work_dir: str = "runs/embedded-vlm"
    """Rows and states."""
    seed: int = 0
    """Of pairs and batches."""
    validation_rows: int = 100
    """Validation pairs."""
    scale: float = 1.0
    """Share of the pairs and updates; below 1 only to try the recipe."""


def main(argv: list[str]) -> int:
    """Teach the phases that are missing and write the judge; returns the exit code."""
    config = load_config(JudgeConfig, argv, prog="python -m tools.embedded.judge")
    console, work = Console(stderr=True), Path(config.work_dir)
    work.mkdir(parents=True, exist_ok=True)
    model, processor = load_model(config.model_dir), load_processor(config.model_dir)
    torch.manual_seed(config.seed + 1)
    seeds = share(PAIRS, config.seed, config.scale)
    rows = open_rows(work, "preference", "train", seeds, console)
    cells = open_cells(work / "cells.pt", int(WITH_CELLS * config.scale) or 1, seeds.start, console)
    lesson = make_lessons(model, processor, {"preference": rows}, lambda some: tokens_of(model, processor, some))["preference"]
    lessons = (lesson, mirrored_pairs(model, processor, rows))
    width = model.config.text_config.hidden_size
    heads = make_heads(width, torch.nn.Linear(width, FACTS["preference"].outputs))
    for number, phase in enumerate(JUDGE):
        part = replace(phase, steps=max(int(phase.steps * config.scale), 1))
        teach_judge(model, heads, lessons, cells, part, work / f"judge_{number}.pt", console)
    known = open_rows(work, "preference", "validation", share(config.validation_rows, config.seed, config.scale), console)
    recipe = {**asdict(config), "pairs": PAIRS, "judge": [asdict(phase) for phase in JUDGE], "with_cells": WITH_CELLS}
    write(model, processor, Path(config.output_dir), recipe | {"validation": validate(model, processor, {"preference": known})}, console)
    calibrate_embedded(Path(config.output_dir), console)
    return 0


def mirrored_pairs(model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> Lesson:
    """A judge's lesson from pictures in a mirror."""
    turned = [{**row, "pictures": [picture.flip(1) for picture in row["pictures"]]} for row in rows]
    return make_lessons(model, processor, {"preference": turned}, lambda some: tokens_of(model, processor, some))["preference"]


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
    """The head of the scores, and a new one that finds blemishes."""
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


if __name__ == "__main__":
    sys.argv[0] = "judge"
    run_command(main)
