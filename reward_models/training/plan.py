"""`train-reward-model --dry-run`: stages, devices, memory, TRL's exact arguments, without weights and without training."""

from pathlib import Path

from portraitkit.memory.vlm_plan import Planner, plan, print_plan, refuse_if_too_large
from reward_models.evaluation.public_pairs import benchmark_files
from reward_models.judge.coherence import check_coherence
from reward_models.judge.pairs import check_pairs
from reward_models.judge.settings import view_of
from reward_models.training.config import RewardModelConfig

VIEW_TOKENS = 72  # Of one of the embedded judge's two pictures: 192 x 96 pixels in merged patches of 16 x 16


def dry_run(config: RewardModelConfig) -> int:
    """Print the plan of a run and refuse data or an NLI model that is not there and what cannot fit; returns the exit code."""
    view = view_of(config.model, config.shown, config.form)
    planner = planner_of(config)
    lines = plan(config, planner)
    lines[1:1] = [
        ("shown", f"{view.shown}, {planner.pictures} pictures; answers in the {view.form} form, at most {config.max_tokens} tokens"),
        ("sft, of", f"{config.sft_pairs or 'all'} pairs in both orders"),
        ("reject", f"{config.reject_pairs or 'all other'} pairs x 2 x {config.reject_samples} trajectories, {config.reject_steps} updates"),
        ("grpo, of", f"the pairs that are still wrong ({config.grpo_pairs})"),
    ]
    folder = config.folder
    print_plan("train-reward-model", lines, config, planner, sft_folder=f"{folder}/sft", grpo_folder=f"{folder}/grpo")
    if config.benchmark != "none":
        benchmark_files(config.benchmark, Path(config.data))
    else:
        check_pairs(config.data)
    check_coherence(config.coherence)
    refuse_if_too_large(config, planner)
    return 0


def planner_of(config: RewardModelConfig) -> Planner:
    """The planner of a run, which knows what the judge is shown."""
    pictures = 2 if view_of(config.model, config.shown, config.form).shown != "as-taken" else 3
    return Planner(config.model, config.stages, pictures=pictures, picture_tokens=VIEW_TOKENS if config.model == "embedded" else None)
