"""Synthetic photos whose blemishes and clean portraits are known, and honest retouches of them."""

import pytest
import torch

from policies.retoucher.photos import SyntheticSource
from reward_models.photos import Photos
from tools.embedded.labels import LABELS


@pytest.fixture(scope="session")
def photos() -> Photos:
    """Eight validation photos."""
    return SyntheticSource(128).load("validation", list(range(8))).photos


@pytest.fixture(scope="session")
def retouches(photos) -> torch.Tensor:
    """Their `good` labels."""
    rows = zip(photos.source, photos.clean, photos.skin, strict=True)
    return torch.stack([LABELS["good"](source, clean, skin, 0.5) for source, clean, skin in rows])
