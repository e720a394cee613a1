"""`align-vlm --dry-run`: devices, memory, steps, tokens and TRL's exact arguments, without weights and without training."""

from contextlib import suppress
from functools import cache
from pathlib import Path

from policies.vlm.align.align_config import AlignVlmConfig
from policies.vlm.align.inputs import check_groups
from policies.vlm.judged import split_name
from policies.vlm.tasks import load_task
from portraitkit.config import load_config, recipe_names
from portraitkit.errors import WeightsError
from portraitkit.memory.vlm_plan import Planner, plan, print_plan, refuse_if_too_large
from portraitkit.memory.vlm_trace import ModelSpec, model_sizes
from reward_models.judge.settings import source_of


def dry_run(config: AlignVlmConfig) -> int:
    """Print the plan of a run and refuse what cannot fit; returns the exit code."""
    maker = recipe_that_makes(config.model)
    made = [("model", f"{config.model}, which --config {maker[0]} makes from {maker[1]}")] if maker else []
    if config.data != "embedded" and not Path(config.data).is_dir():
        made.append(("data", f"{config.data}, which is not there yet"))
    if config.reward is not None:
        check_groups(config)
        source, _ = split_name(config.reward, load_task(config.task))
        made.append(("judge", f"{config.reward}, {_room_of(config, source)}"))
    planner = planner_of(config)
    lines = [*made, *plan(config, planner)]
    title = f"align-vlm --task {config.task}"
    print_plan(title, lines, config, planner, sft_folder=f"{config.folder}/sft", grpo_folder=config.folder)
    refuse_if_too_large(config, planner)
    return 0


def _room_of(config: AlignVlmConfig, source: str) -> str:
    """What a judge takes of a device beside what the plan counts."""
    if source.startswith(("http://", "https://")) or (config.task == "emotion" and source == "embedded"):
        return "no room on a device"
    if source.startswith("vllm:"):
        return "in vLLM, which takes 9 tenths of a device: better behind an address; not counted below"
    with suppress(WeightsError):
        gpu = config.device != "cpu"
        if (sizes := model_sizes(ModelSpec(source_of(source), "bfloat16" if gpu else "float32", gpu=gpu))) is not None:
            return f"{sizes.weights / 2**30:.1f} GiB of weights on each device, not counted below"
    return "not known here, its weights on each device are not counted below"


def planner_of(config: AlignVlmConfig) -> Planner:
    """The planner of a run, for the model that an earlier recipe starts from where that one's result is not there yet."""
    maker = recipe_that_makes(config.model)
    rows = config.train_rows if config.data == "embedded" else None
    return Planner(maker[1] if maker else config.model, config.stages, rows=rows, lora=config.adapter is None)


def recipe_that_makes(source: str) -> tuple[str, str] | None:
    """Name and model of the recipe whose run folder would hold a model that is not there yet; None if no recipe does."""
    return None if Path(source).exists() else _made_by_recipes().get(source)


@cache
def _made_by_recipes() -> dict[str, tuple[str, str]]:
    recipes = {name: load_config(AlignVlmConfig, ["--config", name], prog="align-vlm") for name in recipe_names(AlignVlmConfig)}
    return {f"{recipe.folder}/model": (name, recipe.model) for name, recipe in recipes.items()}
