"""`train-reward-model --dry-run`: stages, devices, memory, TRL's exact arguments, without weights and without training."""

from pathlib import Path

from portraitkit.memory.vlm_plan import Planner, plan, print_plan, refuse_if_too_large
from reward_models.evaluation.public_pairs import benchmark_files
from reward_models.judge.coherence import check_coherence
from reward_models.judge.pairs import check_pairs
from reward_models.judge.settings import view_of
from reward_models.training.config import RewardModelConfig

ANSWERS_SECONDS, UPDATE_SECONDS, MAKE_SECONDS = 0.6, 3.0, 0.18
"""Of 64 answers of the embedded judge, of an update with 64 rows, of making one synthetic pair; on two idle cores."""
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
    if config.model == "embedded" and config.data == "embedded":
        lines.insert(1, ("time, estimated", f"{seconds(config) / 60:.0f} minutes on two idle cores"))
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


def seconds(config: RewardModelConfig) -> float:
    """About how long a run with the embedded judge on embedded pairs takes."""
    train, validation, held_out = (2 * config.counts[split] for split in ("train", "validation", "held_out"))
    updates = answers = 0.0
    if "sft" in config.stages:
        updates += config.sft_steps * config.sft_batch / 64
    if "reject" in config.stages:
        updates += config.reject_steps * config.sft_batch / 64
        answers += (2 * config.reject_pairs or train) * config.reject_samples
    if "grpo" in config.stages:
        updates += config.max_train_steps * config.prompts_per_step * config.group_size / 64
        answers += train + config.max_train_steps * config.prompts_per_step * config.group_size
    if config.blind:
        updates += config.sft_steps * config.sft_batch / 64
        answers += held_out
    looks = sum({"sft": config.sft_steps, "grpo": config.max_train_steps}.get(stage, config.reject_steps) for stage in config.stages)
    answers += (1 + len(config.stages)) * (held_out + validation) + held_out + (10 + 29) * config.hack_cases + 15 * config.stability_pairs
    answers += looks / config.validation_steps * validation if config.validation_steps else 0
    return updates * UPDATE_SECONDS + answers / 64 * ANSWERS_SECONDS + sum(config.counts.values()) * MAKE_SECONDS
