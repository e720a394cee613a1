"""Entry point of `train-reward-model`. Imports nothing heavy: `--help` must answer at once."""

import sys

from portraitkit.cli import command


@command
def train_reward_model(argv: list[str]) -> int:
    """Train the five-dimension judge, and say how good and how biased it is."""
    from portraitkit.config import load_config
    from reward_models.training.config import RewardModelConfig

    config = load_config(RewardModelConfig, argv, prog="train-reward-model", example="--config qwen2_5_vl_7b_lora --data data/preferences")
    if config.dry_run:
        from reward_models.training.plan import dry_run

        return dry_run(config)
    if config.evaluate:
        from reward_models.evaluation.evaluate import run_evaluation

        return run_evaluation(config, [sys.argv[0], *argv])
    from reward_models.training.train import run_training

    return run_training(config, [sys.argv[0], *argv])


if __name__ == "__main__":  # torchrun -m reward_models.main --evaluate ...
    train_reward_model()
