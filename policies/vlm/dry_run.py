"""`align-vlm --dry-run`: devices, memory, steps, tokens and TRL's exact arguments, without weights and without training."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from policies.vlm.align_arguments import grpo_values, lora_arguments, sft_values
from policies.vlm.align_config import AlignVlmConfig
from portraitkit.config import load_config, recipe_names
from portraitkit.vlm.load import EMBEDDED, model_path

KNOWN = {
    "Qwen/Qwen2.5-VL-3B-Instruct": (3_754_622_976, 36, 2048, 2, 128),
    "Qwen/Qwen2.5-VL-7B-Instruct": (8_292_166_656, 28, 3584, 4, 128),
}
"""Parameters, layers, width, key-value heads, head size of published models, for machines that cannot read their configuration."""
PICTURE_TOKENS = 1280
GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """What memory depends on."""

    parameters: int
    layers: int
    width: int
    kv_heads: int
    head_size: int


def dry_run(config: AlignVlmConfig) -> int:
    """Print the plan of a run; returns the exit code."""
    console = Console()
    maker = recipe_that_makes(config.model)
    shape = model_shape(maker[1] if maker else config.model)
    table = Table(title=f"align-vlm --task {config.task}, not started", title_justify="left")
    table.add_column("")
    table.add_column("planned")
    made = [("model", f"{config.model}, which --config {maker[0]} makes from {maker[1]}")] if maker else []
    for name, value in [*made, *plan(config, shape)]:
        table.add_row(name, value)
    console.print(table)
    if "sft" in config.stages:
        console.print("trl.SFTConfig", highlight=False)
        console.print_json(json.dumps(sft_values(config), default=str))
    if "grpo" in config.stages:
        console.print("trl.GRPOConfig", highlight=False)
        console.print_json(json.dumps(grpo_values(config), default=str))
    if (lora := lora_arguments(config)) is not None:
        console.print("peft.LoraConfig", highlight=False)
        console.print_json(json.dumps({"r": lora.r, "lora_alpha": lora.lora_alpha, "target_modules": sorted(lora.target_modules)}))
    return 0


def recipe_that_makes(source: str) -> tuple[str, str] | None:
    """Name and model of the recipe whose run folder would hold a model that is not there yet; None if no recipe does."""
    if Path(source).exists():
        return None
    for name in recipe_names(AlignVlmConfig):
        recipe = load_config(AlignVlmConfig, ["--config", name], prog="align-vlm")
        if source == f"{recipe.folder}/model":
            return name, recipe.model
    return None


def model_shape(source: str) -> Shape | None:
    """Sizes of a model from its configuration alone; None where neither the files nor our table know it."""
    if source in KNOWN:
        return Shape(*KNOWN[source])
    from transformers import AutoConfig, AutoModelForImageTextToText

    path = model_path(source)
    if source != "embedded" and path == source and not (EMBEDDED.parent / source).exists():
        try:
            loaded = AutoConfig.from_pretrained(path)
        except (OSError, ValueError):
            return None
    else:
        loaded = AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(loaded)
    text = loaded.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    parameters = sum(value.numel() for value in model.parameters())
    return Shape(parameters, text.num_hidden_layers, text.hidden_size, text.num_key_value_heads, head)


def plan(config: AlignVlmConfig, shape: Shape | None) -> list[tuple[str, str]]:
    """(name, value) lines of the plan. Memory is an estimate for one device without sharding, and says so."""
    answers = config.prompts_per_step * config.group_size
    lines = [
        ("stages", ", ".join(config.stages)),
        ("device", f"{config.device}, {torch.cuda.device_count()} CUDA device(s) here"),
        ("updates", f"{config.max_train_steps} of {config.prompts_per_step} prompts x {config.group_size} answers a device"),
        ("answers in all", f"{config.max_train_steps * answers:,} a device, each at most {config.max_tokens} tokens"),
    ]
    if shape is None:
        return [*lines, ("model", f"{config.model}: unknown here; download its config.json for a memory estimate")]
    size = 2 if config.dtype == "bfloat16" else 4
    trained = shape.parameters if config.rank == 0 else _lora_parameters(config, shape)
    tokens = PICTURE_TOKENS if config.max_pixels is None else config.max_pixels // 784
    if config.model == "embedded":
        tokens = 64
    length = tokens + 300 * (config.model != "embedded") + config.max_tokens
    at_once = answers // config.accumulation_steps
    weights = shape.parameters * size
    reference = weights if config.beta > 0 and config.rank == 0 else 0
    optimizer = trained * 12
    cache = 2 * shape.layers * shape.kv_heads * shape.head_size * length * answers * size
    kept = 2 if config.gradient_checkpointing else 34
    activations = shape.layers * shape.width * length * at_once * kept * size // 2
    total = weights + reference + optimizer + max(cache, activations)
    return [
        *lines,
        ("tokens", f"about {length} a sequence at most: picture {tokens}, prompt, answer {config.max_tokens}"),
        ("parameters", f"{shape.parameters:,}, trained {trained:,}"),
        ("weights", _gib(weights) + (f" + reference {_gib(reference)}" if reference else "")),
        ("gradients and Adam", _gib(optimizer)),
        ("generation cache", _gib(cache)),
        ("activations", f"{_gib(activations)} for {at_once} sequences at once"),
        ("peak, estimated", f"{_gib(total)} on one device without sharding (ZeRO-3 divides all but activations by the devices)"),
    ]


def _lora_parameters(config: AlignVlmConfig, shape: Shape) -> int:
    """About: each target of each layer has r (in + out) with in and out near the width, three times that in the MLP."""
    mlp = sum(target in ("gate_proj", "up_proj", "down_proj") for target in config.lora_targets)
    return config.rank * shape.layers * shape.width * (2 * (len(config.lora_targets) - mlp) + 5 * mlp)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"
