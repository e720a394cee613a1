"""The rules for single options of `align-retoucher`, as error messages say them."""

from portraitkit.errors import ConfigError

RULES = {
    "num_steps": "at least 1 sampling step",
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


def check_guidance(guidance: float | None) -> None:
    """Refuse a guidance scale below 1.

    Raises:
        ConfigError: below 1, or no number.
    """
    if guidance is not None and not 1 <= guidance < float("inf"):
        raise ConfigError(f"--guidance {guidance:g}: at least 1 (no guidance)")
