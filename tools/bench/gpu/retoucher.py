"""FLUX.1 Kontext at its real size with random weights: groups by DPG with sharing and by all-step Flow-GRPO, through the run's own code."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from statistics import mean, median
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from policies.retoucher.backbones.tiny import EMBEDDED
from policies.retoucher.config import RetoucherConfig
from policies.retoucher.dry_run import CHANGES, MORE_DEVICES, plan_memory
from policies.retoucher.model.architectures import meta_backbone, parts_of, stand_in_condition
from policies.retoucher.photos import SyntheticSource
from policies.retoucher.rollout import Rollout
from policies.retoucher.trainer import Trainer
from portraitkit.config import load_config
from portraitkit.errors import ConfigError
from portraitkit.grpo import group_advantages
from portraitkit.memory.plan import Memory, check_fits, device_limit, human
from portraitkit.memory.trace import tensors_of
from portraitkit.runs.terminal import Interruptible
from reward_models.reward_set import build_rewards
from tools.bench.gpu.case import Case, Row
from tools.bench.gpu.config import RECIPE, GpuBenchConfig
from tools.bench.gpu.device import measured_memory
from tools.bench.gpu.flops import Flops, retoucher_flops
from tools.bench.group_cost import ALL_STEPS, ARMS, DPG, Cost, Group, optimise_group

METHODS = (DPG, ALL_STEPS)
WARM_UP = {**ARMS[ALL_STEPS], "num_steps": 2}
"""A group of few evaluations, after which the optimiser has its states and libraries are loaded."""


def retoucher_cases(bench: GpuBenchConfig, interrupt: Interruptible) -> list[Case]:
    """One case for each size."""
    return [_case(bench, side, interrupt) for side in bench.sides]


def retoucher_config(bench: GpuBenchConfig, side: int) -> RetoucherConfig:
    """The recipe with the benchmark's sizes; with `--tiny` the embedded architecture in its place."""
    recipe = load_config(RetoucherConfig, ["--config", RECIPE], prog="align-retoucher")
    sizes = {"photos_per_step": 1, "group_size": bench.group, "micro_batch": bench.group, "num_steps": bench.steps, "resolution": side}
    model = str(EMBEDDED) if bench.tiny else None
    return replace(recipe, **sizes, rank=bench.rank, lora_alpha=bench.rank, seed=bench.seed, device=bench.where, model=model)


def planned_memory(config: RetoucherConfig) -> Memory:
    """The plan of a run without its text encoders, which have no part in this."""
    memory = plan_memory(config)
    held = {name: size for name, size in memory.held.items() if name != "text encoders"}
    return replace(memory, held=held, phases={name: size for name, size in memory.phases.items() if not name.startswith("encoding text")})


def _case(bench: GpuBenchConfig, side: int, interrupt: Interruptible) -> Case:
    config = retoucher_config(bench, side)
    model = "tiny FLUX.1 Kontext" if bench.tiny else "FLUX.1 Kontext"
    setting = f"{side} px, group {bench.group}, T {bench.steps}, LoRA {bench.rank}"
    row = partial(Row, model, setting, unit="pictures")
    return Case(model, setting, METHODS, lambda: _measure(bench, config, row, interrupt), lambda: _advice(config))


def _advice(config: RetoucherConfig) -> str:
    wanted = replace(config, **ARMS[ALL_STEPS])
    memory = planned_memory(wanted)
    try:
        check_fits(wanted, memory, device_limit(None, config.device), planned_memory, CHANGES, MORE_DEVICES)
    except ConfigError as error:
        return str(error).removeprefix("--device-memory: ")
    return f"the planner expected {human(memory.peak)} to be enough; free the device of other programs, or lower --pixels or --group"


def _measure(bench: GpuBenchConfig, config: RetoucherConfig, row: Any, interrupt: Interruptible) -> Iterator[Row]:
    flops = retoucher_flops(config)
    torch.manual_seed(bench.seed)
    backbone = meta_backbone("flux_kontext", config.model, config.resolution, device=config.device)
    rewards = build_rewards(("texture",), (), "product")  # neither it nor the photos are asked for anything
    trainer = Trainer(config, backbone, SyntheticSource(backbone.resolution), rewards, Console(stderr=True))
    group = _group(backbone)
    optimise_group(trainer, replace(config, **WARM_UP), group, 0)
    modules = sum(name.endswith("lora_A.default") for name, _ in backbone.transformer.named_modules())
    held = [t for some in parts_of(backbone).values() for module in some for t in tensors_of(module)]
    held += [*trainer.average.values(), *trainer.best.values()]
    for method in METHODS:
        if interrupt.requested:
            return
        chosen = replace(config, **ARMS[method])
        costs: list[Cost] = []
        with measured_memory(config.device, held) as peak:
            while len(costs) < bench.groups and not interrupt.requested:
                costs.append(optimise_group(trainer, chosen, group, 1 + len(costs)))
        if not costs:
            return
        plan = planned_memory(chosen)
        yield row(
            method,
            seconds=median(cost.policy_seconds for cost in costs),
            evaluations=mean(cost.evaluations for cost in costs),
            flops=mean(_flops_of(cost, flops) for cost in costs),
            peak=peak.tensors,
            planned=plan.tensors,
            details={
                "lora_modules": modules,
                "groups": [{**vars(cost), "flops": _flops_of(cost, flops)} for cost in costs],
                "seconds_with_decoding": median(cost.total_seconds for cost in costs),
                "peak_reserved": peak.reserved,
                "planned_peak": plan.peak,
                "planned_at": plan.at_peak,
            },
        )


def _group(backbone: Any) -> Group:
    """A photo of noise and its anchor, encoded; candidates are decoded, as in a run, and then judged by chance."""
    photos, anchors = torch.rand(2, 1, 3, backbone.resolution, backbone.resolution)  # drawn on the CPU, encoded where the backbone is
    stand_in = stand_in_condition(backbone, 1)
    condition = replace(stand_in, reference=backbone.encode(photos))
    chance = torch.Generator().manual_seed(0)

    def advantages(rollout: Rollout) -> Tensor:
        candidates = backbone.decode(rollout.latents, condition.select(rollout.photo_of))
        return group_advantages(torch.rand(len(candidates), generator=chance), rollout.photo_of).values

    return Group(condition, backbone.encode(anchors), advantages)


def _flops_of(cost: Cost, flops: Flops) -> float:
    """A row of the update is an evaluation and a backward, counted as three evaluations."""
    return cost.rolled * flops.forward + cost.updated / 3 * flops.update
