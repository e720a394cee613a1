"""`align-vlm --dry-run`: devices, memory, steps, tokens and TRL's exact arguments, without weights and without training."""

from typing import Any

from policies.vlm.align_config import AlignVlmConfig
from portraitkit.vlm.plan import plan, print_plan
from portraitkit.vlm.trainer_arguments import grpo_values, sft_values


def dry_run(config: AlignVlmConfig) -> int:
    """Print the plan of a run; returns the exit code."""
    arguments: dict[str, dict[str, Any]] = {}
    if "sft" in config.stages:
        arguments["trl.SFTConfig"] = sft_values(config, f"{config.folder}/sft")
    if "grpo" in config.stages:
        arguments["trl.GRPOConfig"] = grpo_values(config, config.folder)
    print_plan(f"align-vlm --task {config.task}", plan(config, config.model, config.stages), arguments, config)
    return 0
