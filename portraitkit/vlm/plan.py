"""The plan of a training run for `--dry-run`: devices, memory, steps, tokens, without weights and without training."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from portraitkit.vlm.load import EMBEDDED, model_path
from portraitkit.vlm.trainer_arguments import lora_arguments
from portraitkit.vlm.trainer_options import TrainerOptions

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


def plan(
    options: TrainerOptions, model: str, stages: Sequence[str], *, pictures: int = 1, picture_tokens: int | None = None
) -> list[tuple[str, str]]:
    """(name, value) lines of the plan. Memory is an estimate for one device without sharding, and says so.

    Args:
        options: of the trainers.
        model: embedded, a folder or a hub id.
        stages: their names.
        pictures: shown in a row.
        picture_tokens: of one picture of the embedded data; None: 64.
    """
    shape = model_shape(model)
    answers = options.prompts_per_step * options.group_size
    lines = [
        ("stages", ", ".join(stages)),
        ("device", f"{options.device}, {torch.cuda.device_count()} CUDA device(s) here"),
        ("updates", f"{options.max_train_steps} of {options.prompts_per_step} prompts x {options.group_size} answers a device"),
        ("answers in all", f"{options.max_train_steps * answers:,} a device, each at most {options.max_tokens} tokens"),
    ]
    if shape is None:
        return [*lines, ("model", f"{model}: unknown here; download its config.json for a memory estimate")]
    size = 2 if options.dtype == "bfloat16" else 4
    trained = shape.parameters if options.rank == 0 else _lora_parameters(options, shape)
    tokens = PICTURE_TOKENS if options.max_pixels is None else options.max_pixels // 784
    if model == "embedded":
        tokens = picture_tokens or 64
    tokens *= pictures
    length = tokens + 300 * (model != "embedded") + options.max_tokens
    at_once = answers // options.accumulation_steps
    weights = shape.parameters * size
    reference = weights if options.beta > 0 and options.rank == 0 else 0
    optimizer = trained * 12
    cache = 2 * shape.layers * shape.kv_heads * shape.head_size * length * answers * size
    kept = 2 if options.gradient_checkpointing else 34
    activations = shape.layers * shape.width * length * at_once * kept * size // 2
    total = weights + reference + optimizer + max(cache, activations)
    return [
        *lines,
        ("tokens", f"about {length} a sequence at most: pictures {tokens}, prompt, answer {options.max_tokens}"),
        ("parameters", f"{shape.parameters:,}, trained {trained:,}"),
        ("weights", _gib(weights) + (f" + reference {_gib(reference)}" if reference else "")),
        ("gradients and Adam", _gib(optimizer)),
        ("generation cache", _gib(cache)),
        ("activations", f"{_gib(activations)} for {at_once} sequences at once"),
        ("peak, estimated", f"{_gib(total)} on one device without sharding (ZeRO-3 divides all but activations by the devices)"),
    ]


def print_plan(title: str, lines: Sequence[tuple[str, str]], arguments: Mapping[str, Mapping[str, Any]], options: TrainerOptions) -> None:
    """Print a plan and the exact arguments.

    Args:
        title: the command.
        lines: from `plan`.
        arguments: class -> arguments, as JSON takes them.
        options: of the trainers.
    """
    console = Console()
    table = Table(title=f"{title}, not started", title_justify="left")
    table.add_column("")
    table.add_column("planned")
    for name, value in lines:
        table.add_row(name, value)
    console.print(table)
    for name, values in arguments.items():
        console.print(name, highlight=False)
        console.print_json(json.dumps(values, default=str))
    if (lora := lora_arguments(options)) is not None:
        console.print("peft.LoraConfig", highlight=False)
        console.print_json(json.dumps({"r": lora.r, "lora_alpha": lora.lora_alpha, "target_modules": sorted(lora.target_modules)}))


def _lora_parameters(options: TrainerOptions, shape: Shape) -> int:
    """About: each target of each layer has r (in + out) with in and out near the width, three times that in the MLP."""
    mlp = sum(target in ("gate_proj", "up_proj", "down_proj") for target in options.lora_targets)
    return options.rank * shape.layers * shape.width * (2 * (len(options.lora_targets) - mlp) + 5 * mlp)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"
