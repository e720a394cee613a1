"""The rewards of a run, in this process or behind workers."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from policies.retoucher.config import RetoucherConfig
from reward_models.reward_set import RewardSet, build_rewards
from reward_models.workers.client import RewardWorkers


@contextmanager
def open_rewards(config: RetoucherConfig, console: Console) -> Iterator[RewardSet]:
    """The rewards that the configuration names; workers are asked first, before anything is loaded or written.

    Raises:
        ConfigError: a reward's name is unknown, or a worker does not answer or does not fit.
        WeightsError: a learned reward's weights are not there.
    """
    workers = None
    if config.reward_worker:
        from reward_models.workers.connect import connect

        def say(text: str) -> None:
            console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

        limits = {"timeout": config.reward_worker_timeout, "patience": config.reward_worker_patience}
        workers = connect(config.reward_worker, config.all_rewards, say=say, **limits)
    try:
        yield build_rewards(config.all_rewards, config.reward_weights, config.combine, config.device, workers=workers)
    finally:
        if workers is not None:
            workers.close()


def workers_of(rewards: RewardSet) -> RewardWorkers | None:
    """The workers behind the rewards, where there are some."""
    return rewards.elsewhere if isinstance(rewards.elsewhere, RewardWorkers) else None
