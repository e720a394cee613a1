"""Residual grain: noise that a retouch adds."""

import pytest
import torch

from reward_models.filters import blur
from reward_models.verifiable import residual_grain


def noise(like: torch.Tensor, std: float) -> torch.Tensor:
    """The same in all three channels."""
    return std * torch.randn(like[:, :1].shape, generator=torch.Generator().manual_seed(0)).expand_as(like)


def test_none_where_nothing_changed(photos):
    assert not residual_grain(photos.source, photos).any()


def test_it_is_the_noise_in_percent(photos):
    """White noise keeps sqrt(1 - 2 k0 + sum k^2) of its deviation when its blur (kernel k) is taken away: .92 at 1 px."""
    once, twice = (residual_grain(photos.source + noise(photos.source, std), photos) for std in (0.01, 0.02))
    torch.testing.assert_close(twice, 2 * once, rtol=1e-3, atol=1e-3)
    kernel = blur(torch.zeros(1, 1, 15, 15).index_put((torch.tensor(0),) * 2 + (torch.tensor(7),) * 2, torch.tensor(1.0)), 1.0)
    kept = float((1 - 2 * kernel[0, 0, 7, 7] + kernel.square().sum()).sqrt())
    assert once.mean() == pytest.approx(kept, rel=0.03)


def test_smooth_edits_have_hardly_any(photos, retouches):
    light = 0.1 * torch.linspace(0, 1, 128).expand_as(photos.source)
    assert (residual_grain(photos.source + light, photos) < 0.02).all()
    honest, noisy = residual_grain(retouches, photos), residual_grain(retouches + noise(retouches, 0.03), photos)
    assert (noisy > 1.5 * honest).all()


def test_only_the_skin_counts(photos):
    outside = noise(photos.source, 0.1) * (photos.skin == 0)
    assert (residual_grain(photos.source + outside, photos) < 0.05).all()


def test_each_photo_by_itself(photos):
    candidates = photos.source.clone()
    candidates[3] += noise(candidates, 0.05)[3]
    grain = residual_grain(candidates, photos)
    assert grain[3] > 3 and not grain[torch.arange(len(grain)) != 3].any()
