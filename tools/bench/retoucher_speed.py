"""`make bench`: what a group costs. DPG with shared prefix and first drawn step against all-step Flow-GRPO, in one run.

Both optimise groups of the same photo on the embedded architecture, at equal T and group size, in turns. Printed for each: network
evaluations per optimised group (a backward counts as two), seconds of rollout and update, seconds with decoding and rewards
besides, and the peak memory of a process that does nothing else. Weights do not change the cost: random ones of the same make serve.
"""

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import replace
from statistics import mean, median

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from policies.retoucher.backbones import tiny
from policies.retoucher.config import RetoucherConfig
from policies.retoucher.photos import SyntheticSource
from policies.retoucher.rollout import Rollout
from policies.retoucher.trainer import Trainer
from portraitkit.grpo import group_advantages
from reward_models.reward_set import build_rewards
from tools.bench.group_cost import ALL_STEPS, ARMS, DPG, Cost, Group, optimise_group
from tools.embedded import tiny_kontext


class Bench:
    """One arm, ready to optimise one group at a time."""

    def __init__(self, arm: str, num_steps: int, group_size: int) -> None:
        config = RetoucherConfig.of(num_steps=num_steps, group_size=group_size, photos_per_step=1, micro_batch=group_size)
        self.config = replace(config, **ARMS[arm])
        self.backbone = tiny.wrap(tiny_kontext.build_pipeline(0))
        self.rewards = build_rewards(self.config.rewards, (), self.config.combine)
        source = SyntheticSource(self.backbone.resolution)
        self.trainer = Trainer(self.config, self.backbone, source, self.rewards, Console(stderr=True))
        self.batch = source.load("train", [0])
        self.condition = self.backbone.condition(self.batch.photos.source, self.config.prompt)
        self.group = Group(self.condition, self.backbone.encode(self.batch.photos.clean), self._advantages)

    def optimise_group(self, number: int) -> Cost:
        """Roll out, score and update one group; the drawn steps follow from `number`."""
        return optimise_group(self.trainer, self.config, self.group, number)

    def _advantages(self, rollout: Rollout) -> Tensor:
        candidates = self.backbone.decode(rollout.latents, self.condition.select(rollout.photo_of))
        parts = self.rewards.parts(candidates, self.batch.photos, rollout.photo_of)
        return group_advantages(self.rewards.combined(parts), rollout.photo_of).values


def compare_costs(num_steps: int, group_size: int, repeats: int) -> dict[str, Cost]:
    """Cost of both arms: evaluations are a mean over draws of the steps, seconds a median; the arms take turns."""
    benches = {arm: Bench(arm, num_steps, group_size) for arm in ARMS}
    costs: dict[str, list[Cost]] = {arm: [] for arm in ARMS}
    for number in range(repeats + 1):
        for arm, bench in benches.items():
            cost = bench.optimise_group(number)
            if number > 0:  # the first group warms up
                costs[arm].append(cost)
    return {
        arm: Cost(
            mean(c.rolled for c in seen),
            mean(c.updated for c in seen),
            median(c.policy_seconds for c in seen),
            median(c.total_seconds for c in seen),
        )
        for arm, seen in costs.items()
    }


def peak_mib(arm: str, num_steps: int, group_size: int) -> float:
    """Peak resident memory of a fresh process that optimises two groups, in MiB."""
    command = [sys.executable, "-m", "tools.bench.retoucher_speed", "--peak", arm, str(num_steps), str(group_size)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])


def main() -> None:
    """Console entry of `python -m tools.bench.retoucher_speed`."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.retoucher_speed", description=__doc__)
    parser.add_argument("--group-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=12, help="groups a median is taken of, after one to warm up")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 28], help="values of T")
    parser.add_argument("--peak", nargs=3, metavar=("ARM", "T", "G"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        bench = Bench(args.peak[0], int(args.peak[1]), int(args.peak[2]))
        for number in range(2):
            bench.optimise_group(number)
        print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
        return
    table = Table(title=f"One optimised group of {args.group_size}, {args.repeats} groups, {torch.get_num_threads()} threads")
    for column in ("T", "method", "evaluations / candidate", "policy s", "with rewards s", "peak MiB"):
        table.add_column(column, justify="left" if column == "method" else "right")
    ratios = []
    for num_steps in args.steps:
        costs = compare_costs(num_steps, args.group_size, args.repeats)
        for arm, cost in costs.items():
            peak = peak_mib(arm, num_steps, args.group_size)
            per = cost.evaluations / args.group_size
            table.add_row(
                str(num_steps),
                arm,
                f"{per:.1f}",
                f"{cost.policy_seconds:.2f}",
                f"{cost.total_seconds:.2f}",
                f"{peak:.0f}",
            )
        slow, fast = costs[ALL_STEPS], costs[DPG]
        ratios.append(
            f"T {num_steps}: {slow.evaluations / fast.evaluations:.1f}x fewer evaluations, "
            f"{slow.policy_seconds / fast.policy_seconds:.1f}x less time in the policy, "
            f"{slow.total_seconds / fast.total_seconds:.1f}x with decoding and rewards"
        )
    console = Console(width=110)
    console.print(table)
    for line in ratios:
        console.print(line, highlight=False)


if __name__ == "__main__":
    main()
