"""TRL's arguments for `align-vlm`, from its options."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from policies.vlm.align_config import AlignVlmConfig
from portraitkit.errors import ConfigError
from portraitkit.vlm.load import check_adapter
from portraitkit.vlm.trl_arguments import build_arguments, parse_extra

# transformers 5.20 renamed it; earlier ones know the old name only.
CHECKPOINTING = "activation_checkpointing" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient_checkpointing"


def common_arguments(config: AlignVlmConfig) -> dict[str, Any]:
    """What both trainers take."""
    on_cpu = config.device == "cpu"
    if config.deepspeed is not None and not Path(config.deepspeed).is_file():
        raise ConfigError(f"--deepspeed {config.deepspeed}: no such file; give a DeepSpeed configuration in JSON")
    return {
        "output_dir": config.folder,
        "use_cpu": on_cpu,
        "bf16": config.dtype == "bfloat16" and not on_cpu,
        "fp16": False,
        CHECKPOINTING: config.gradient_checkpointing,
        "max_grad_norm": config.max_grad_norm,
        "seed": config.seed % 2**32,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": config.checkpointing_steps or 10**9,
        "save_total_limit": config.checkpoints_total_limit,
        "disable_tqdm": True,
        "report_to": "none",
        "deepspeed": config.deepspeed,
        "dataloader_pin_memory": not on_cpu,
    }


def grpo_values(config: AlignVlmConfig) -> dict[str, Any]:
    """The arguments of `trl.GRPOConfig`, by name; `--trl` has the last word."""
    from trl import GRPOConfig

    values = {
        **common_arguments(config),
        "max_steps": config.max_train_steps,
        "per_device_train_batch_size": config.prompts_per_step * config.group_size // config.accumulation_steps,
        "gradient_accumulation_steps": config.accumulation_steps,
        "num_generations": config.group_size,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler,
        "warmup_steps": config.warmup_steps,
        "beta": config.beta,
        "loss_type": config.loss_type,
        "scale_rewards": config.scale_rewards,
        "multi_objective_aggregation": config.aggregation,
        "reward_weights": list(config.reward_weights) or None,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_completion_length": config.max_tokens,
    }
    return {**values, **parse_extra(config.trl, GRPOConfig)}


def grpo_arguments(config: AlignVlmConfig) -> Any:
    """A checked `trl.GRPOConfig`."""
    from trl import GRPOConfig

    return build_arguments(GRPOConfig, grpo_values(config))


def sft_values(config: AlignVlmConfig) -> dict[str, Any]:
    """The arguments of `trl.SFTConfig`, by name."""
    return {
        **common_arguments(config),
        "output_dir": str(Path(config.folder) / "sft"),
        "max_steps": config.sft_steps,
        "per_device_train_batch_size": config.sft_batch,
        "learning_rate": config.sft_learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": max(config.sft_steps // 20, 1),
        "max_length": None,
        "completion_only_loss": True,
    }


def sft_arguments(config: AlignVlmConfig) -> Any:
    """A checked `trl.SFTConfig`."""
    from trl import SFTConfig

    return build_arguments(SFTConfig, sft_values(config))


def lora_arguments(config: AlignVlmConfig) -> Any:
    """A `peft.LoraConfig` for the language part, or None for full training."""
    if config.rank == 0:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=config.rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.lora_targets),
        exclude_modules=r".*(visual|vision_tower|vision_model).*",
    )


def check_continued(config: AlignVlmConfig) -> None:
    """Refuse to train an adapter on with other settings than its own: peft takes the adapter's, and ours would be ignored.

    Raises:
        ConfigError: --adapter holds none, or --rank and its companions differ from it.
    """
    check_adapter(config.adapter)
    if config.adapter is None or config.rank == 0:
        return
    path = Path(config.adapter) / "adapter_config.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"--adapter {config.adapter}: {path.name} is not JSON; give the model folder of a finished run") from error
    targets = stored.get("target_modules")
    given = {
        "rank": (config.rank, stored.get("r")),
        "lora-alpha": (config.lora_alpha, stored.get("lora_alpha")),
        "lora-dropout": (config.lora_dropout, stored.get("lora_dropout")),
        "lora-targets": (sorted(config.lora_targets), sorted(targets) if isinstance(targets, list) else targets),
    }
    for name, (wanted, has) in given.items():
        if wanted != has:
            raise ConfigError(
                f"--{name} {wanted}: the LoRA of --adapter {config.adapter} has {has}; give that to train it on, or --rank 0 to merge it "
                "and train all weights"
            )
