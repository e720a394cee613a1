"""`align-vlm --dry-run`: devices, memory, steps, tokens and TRL's exact arguments, without weights and without training."""

from pathlib import Path

from policies.vlm.align.align_config import AlignVlmConfig
from portraitkit.config import load_config, recipe_names
from portraitkit.memory.vlm_plan import Planner, plan, print_plan, refuse_if_too_large


def dry_run(config: AlignVlmConfig) -> int:
    """Print the plan of a run and refuse what cannot fit; returns the exit code.

    Raises:
        ConfigError: the run cannot fit on the device; the message names the change that makes it fit.
    """
    maker = recipe_that_makes(config.model)
    made = [("model", f"{config.model}, which --config {maker[0]} makes from {maker[1]}")] if maker else []
    if config.data != "embedded" and not Path(config.data).is_dir():
        made.append(("data", f"{config.data}, which is not there yet"))
    planner = planner_of(config)
    lines = [*made, *plan(config, planner)]
    title = f"align-vlm --task {config.task}"
    print_plan(title, lines, config, planner, sft_folder=f"{config.folder}/sft", grpo_folder=config.folder)
    refuse_if_too_large(config, planner)
    return 0


def planner_of(config: AlignVlmConfig) -> Planner:
    """The planner of a run, for the model that an earlier recipe starts from where that one's result is not there yet."""
    maker = recipe_that_makes(config.model)
    rows = config.train_rows if config.data == "embedded" else None
    return Planner(maker[1] if maker else config.model, config.stages, rows=rows, lora=config.adapter is None)


def recipe_that_makes(source: str) -> tuple[str, str] | None:
    """Name and model of the recipe whose run folder would hold a model that is not there yet; None if no recipe does."""
    if Path(source).exists():
        return None
    for name in recipe_names(AlignVlmConfig):
        recipe = load_config(AlignVlmConfig, ["--config", name], prog="align-vlm")
        if source == f"{recipe.folder}/model":
            return name, recipe.model
    return None
