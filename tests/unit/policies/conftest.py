"""Tiny random retouchers and a few synthetic photos, shared by the policy tests."""

from dataclasses import replace

import pytest
from rich.console import Console

from policies.retoucher.backbones import tiny
from policies.retoucher.config import RetoucherConfig
from policies.retoucher.photos import SyntheticSource
from policies.retoucher.trainer import Trainer
from reward_models.reward_set import build_rewards
from tools.embedded import tiny_kontext


@pytest.fixture
def backbone():
    """The embedded architecture with random weights."""
    return tiny.wrap(tiny_kontext.build_pipeline(0))


@pytest.fixture(scope="session")
def source() -> SyntheticSource:
    """The embedded photos."""
    return SyntheticSource(tiny.RESOLUTION)


@pytest.fixture
def config() -> RetoucherConfig:
    """Two photos, four candidates, four steps: a training step in a second."""
    return RetoucherConfig.of(
        num_steps=4, photos_per_step=2, group_size=4, max_train_steps=3, rank=4, rewards=("blemish_removal", "texture")
    )


@pytest.fixture
def make_trainer(source):
    """A function from a configuration to a fresh trainer."""

    def make(config: RetoucherConfig, **changes) -> Trainer:
        config = replace(config, **changes)
        rewards = build_rewards(config.rewards, config.reward_weights, config.combine)
        fresh = tiny.wrap(tiny_kontext.build_pipeline(0))
        return Trainer(config, fresh, source, rewards, Console(quiet=True))

    return make


@pytest.fixture(autouse=True)
def exact(one_thread):
    """Everywhere here."""
