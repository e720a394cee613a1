"""Synthetic pairs: two candidates with known faults, so that the truth of every dimension is known.

The rule. Each fault has a level from 0 (absent) to 4 (gross). A dimension's level is the worst that any fault costs it
(`degradations.EFFECTS`, rounded down), its score is 5 minus that level; the higher score wins, equal scores are a tie. Overall, the
higher mean score wins. Within a pair the two candidates share their faults' kinds, variants and offsets, so that equal levels are equal
strengths and a higher level is the same fault, only stronger.

A level's strength is `(level + offset) / 4`. Offsets lie in another range in each split, and so do the people: a judge that is tested on
`held_out` sees faces and strengths it was never trained on, beyond the strongest of `train` at the top.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from preference_data.people.degradations import EFFECTS, GROSS, Kinds, degrade
from preference_data.people.synthetic import Case, draw_uniform, make_case
from preference_data.schema import DIMENSIONS
from preference_data.verdict import Verdict, winner

OFFSETS = {"train": (-0.2, 0.2), "validation": (-0.35, -0.22), "held_out": (0.22, 0.35)}
MODES = {"apart": 0.65, "near": 0.2, "label": 0.15}
SPOTS = (8, 16)
Levels = dict[str, int]


@dataclass(frozen=True)
class PairPlan:
    """The faults of both candidates."""

    mode: str  # "apart" (levels drawn freely), "near" (one dimension differs, by one level) or "label" (one is the honest retouch)
    kinds: dict[str, str]  # dimension -> the kind of fault that both candidates have there
    a: Levels  # dimension -> level of a's fault of that kind
    b: Levels  # the same for b
    offset: dict[str, float]  # dimension -> offset of the levels' strengths
    variant: int  # seed of what the kinds leave open

    def faults(self, side: str) -> dict[str, float]:
        """kind -> strength of candidate "a" or "b"; absent faults are left out."""
        levels = self.a if side == "a" else self.b
        return {self.kinds[name]: (level + self.offset[name]) / 4 for name, level in levels.items() if level}

    def scores(self) -> dict[str, tuple[int, int]]:
        """Dimension -> true scores of a and b, 1 to 5."""
        a, b = (true_scores({self.kinds[name]: level for name, level in levels.items()}) for levels in (self.a, self.b))
        return {name: (a[name], b[name]) for name in DIMENSIONS}


def true_scores(levels: Levels) -> dict[str, int]:
    """Dimension -> score 1 to 5 of a candidate with these faults (kind -> level 0 to 4), by the module's rule."""
    cost = {name: max((int(level * EFFECTS[kind].get(name, 0.0)) for kind, level in levels.items()), default=0) for name in DIMENSIONS}
    return {name: 5 - cost[name] for name in DIMENSIONS}


def verdicts_of(scores: dict[str, tuple[int, int]]) -> tuple[dict[str, Verdict], Verdict]:
    """Verdicts of the dimensions and the overall one, by the module's rule."""
    verdicts: dict[str, Verdict] = {name: winner(a, b) for name, (a, b) in scores.items()}
    return verdicts, winner(sum(a for a, _ in scores.values()), sum(b for _, b in scores.values()))


def draw_plan(split: str, generator: torch.Generator, mode: str | None = None, kinds_of: Kinds = GROSS) -> PairPlan:
    """Draw the faults of one pair, offsets from the split's range; no plan is an overall tie. The mode (see `PairPlan`) is drawn by `MODES`
    if not given; kinds are drawn from `kinds_of`.
    """
    chance = partial(draw_uniform, generator)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    kinds = {name: kinds_of[name][integer(0, len(kinds_of[name]) - 1)] for name in DIMENSIONS}
    offset = {name: chance(*OFFSETS[split]) for name in DIMENSIONS}
    if mode is None:
        mode = list(MODES)[int(torch.multinomial(torch.tensor(list(MODES.values())), 1, generator=generator))]
    variant = integer(0, 2**31 - 2)
    while True:
        a, b = {}, {}
        for name in DIMENSIONS:
            a[name], b[name] = integer(0, 4), integer(0, 4)
            if mode == "near":
                a[name] = b[name] = a[name] if chance() < 0.5 else 0
            elif chance() < 0.28:
                a[name] = b[name] = a[name] if chance() < 0.4 else 0
        if mode == "near":
            name = DIMENSIONS[integer(0, 4)]
            a[name], b[name] = (level := integer(0, 3)), level + 1
        if mode == "label":
            a = dict.fromkeys(DIMENSIONS, 0)
        if chance() < 0.5:
            a, b = b, a
        plan = PairPlan(mode, kinds, a, b, offset, variant)
        if verdicts_of(plan.scores())[1] != "tie":
            return plan


def make_pair(split: str, seed: int, *, size: int = 128, mode: str | None = None) -> dict[str, Any]:
    """One synthetic pair; equal arguments give equal pairs, and the global random state is left alone.

    The person is that of `make_case(split, seed)`; people and strengths differ between the splits, see the module. The mode (see
    `PairPlan`) is drawn if not given.

    Returns:
        `input`, `a`, `b`: RGB tensors (3, size, size) in [0, 1]; `faults_a`, `faults_b`: kind -> strength; `scores`: dimension -> (score
        of a, of b), integers 1 to 5; `verdicts`: dimension -> "a", "b" or "tie"; `overall`: "a" or "b"; `identity`: a name of the person.
    """
    case = make_case(split, seed, size=size, count=SPOTS)
    plan = draw_plan(split, torch.Generator().manual_seed(seed + 2**40), mode)
    scores, (verdicts, overall) = plan.scores(), verdicts_of(plan.scores())
    truth = {"scores": scores, "verdicts": verdicts, "overall": overall, "identity": identity_of(case)}
    faults = {f"faults_{side}": plan.faults(side) for side in ("a", "b")}
    pictures = {side: degrade(case, faults[f"faults_{side}"], plan.variant) for side in ("a", "b")}
    return {**truth, "input": (case.source * 255).round() / 255, **pictures, **faults}


def identity_of(case: Case) -> str:
    """A name of the synthetic person: morph position and face shape; equal for equal people only."""
    shape = case.mesh - case.mesh.mean(0)
    return f"synthetic-{case.morph:.6f}-{float(shape.norm() / (shape[33] - shape[263]).norm()):.6f}"
