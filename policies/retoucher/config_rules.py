"""The rules for single options of `align-retoucher`, as error messages say them."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from portraitkit.errors import ConfigError
from portraitkit.parallel import is_first_process, launched_processes

RULES = {
    "num_steps": "at least 1 sampling step",
    "eval_num_steps": "0 (as --num-steps) or more",
    "photos_per_step": "at least 1 photo",
    "max_train_steps": "at least 1 training step",
    "warmup_steps": "0 or more",
    "rank": "a LoRA needs rank 1 or more",
    "micro_batch": "at least 1 candidate",
    "updates_per_step": "between 1 and --photos-per-step",
    "learning_rate": "must be above 0",
    "eta": "must be above 0, or nothing is explored",
    "lam_max": "between 0 (no guidance) and 1",
    "validation_photos": "at least 1",
    "held_out_photos": "at least 2, or there is no interval",
    "ema_decay": "at least 0 (off) and below 1",
    "validation_steps": "at least 1 training step between two validations",
    "checkpointing_steps": "0 (only at the end) or more",
    "adam_epsilon": "must be above 0",
    "weight_decay": "0 or more",
    "max_grad_norm": "must be above 0",
    "clip_range": "must be above 0",
    "advantage_clip": "must be above 0",
    "kl_beta": "0 (off) or more",
    "lora_alpha": "at least 1",
    "ablate_seeds": "at least 1 seed an arm",
    "max_network_evaluations": "0 (no limit) or more",
    "max_unscorable": "a share between 0 and 1",
    "reward_worker_timeout": "must be above 0 seconds",
    "reward_worker_patience": "at least --reward-worker-timeout, or the first slow answer ends the run",
    "seed": "between 0 and 2^63 - 1",
}


NOT_OF_TINY = ("model", "resolution", "device", "guidance", "negative_prompt", "quantize", "offload_text_encoder", "vae_tiling")
"""What a recipe says of the model that it was written for, and that the embedded retoucher cannot have or would have otherwise."""


def revise_recipe(values: dict[str, Any], typed: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """A recipe's values as they count: with `--backbone tiny` typed, without those of the model that it was written for.

    So one recipe runs on a large model and on the embedded one, where only the backbone and the launcher change. What is left out is
    said in one line; what was typed is never left out.
    """
    if list(typed.get("backbone", ())) != ["tiny"] or values.get("backbone", "tiny") == "tiny":
        return values
    unfit = {name: values[name] for name in NOT_OF_TINY if name in values and name not in typed}
    if "sharding" in values and "sharding" not in typed and launched_processes() == 1:
        unfit["sharding"] = values["sharding"]
    if unfit and is_first_process():
        shown = ", ".join(f"{name} = {json.dumps(value)}" for name, value in unfit.items())
        print(f"--backbone tiny: without the recipe's {shown}", file=sys.stderr)
    return {name: value for name, value in values.items() if name not in unfit}


def check_guidance(guidance: float | None) -> None:
    """Refuse a guidance scale below 1.

    Raises:
        ConfigError: below 1, or no number.
    """
    if guidance is not None and not 1 <= guidance < float("inf"):
        raise ConfigError(f"--guidance {guidance:g}: at least 1 (no guidance)")
