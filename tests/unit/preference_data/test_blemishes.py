"""Painted spots: where the mask says, on skin only, in the colours of their kinds."""

import pytest
import torch
from scipy.ndimage import label

from preference_data.people.synthetic import TINT_SHARES, TINTS, paint_blemishes

CLEAN = torch.tensor([0.7, 0.5, 0.4]).view(3, 1, 1).expand(3, 128, 128)


def skin(size: int = 128) -> torch.Tensor:
    """Skin on the left, with a soft edge."""
    return (size * 0.6 + 0.5 - torch.arange(size)).div(4).clamp(0, 1).expand(1, size, size).clone()


def paint(seed: int, clean: torch.Tensor = CLEAN, count: tuple[int, int] = (5, 14)) -> tuple[torch.Tensor, torch.Tensor]:
    return paint_blemishes(clean, skin(clean.shape[-1]), torch.Generator().manual_seed(seed), count=count)


def test_equal_seeds_give_equal_spots():
    assert all(torch.equal(one, other) for one, other in zip(paint(3), paint(3), strict=True))
    assert not torch.equal(paint(3)[1], paint(4)[1])


@pytest.mark.parametrize("seed", range(6))
def test_the_picture_changes_where_the_opacity_says_and_on_skin_only(seed):
    source, opacity = paint(seed)
    change = (source - CLEAN).abs().amax(0, keepdim=True)
    assert torch.equal(change > 0, opacity > 0)
    assert (opacity <= skin() + 1e-6).all()
    assert opacity.max() <= 1 and opacity[opacity > 0].min() > 0.05


@pytest.mark.parametrize("seed", range(6))
def test_spots_have_the_tints_of_the_kinds(seed):
    """One spot: the change is its opacity times the tint of one of the five kinds."""
    source, opacity = paint(seed, count=(1, 1))
    inside = opacity[0] > 0
    tint = 1 - (1 - source / CLEAN)[:, inside] / opacity[:, inside]
    assert float((tint.mean(1) - TINTS).abs().amax(1).min()) < 1e-4
    assert tint.std(1).max() < 1e-4


def test_pores_stay_visible_through_a_spot():
    """A spot multiplies: relative detail is what it was."""
    pores = (1 + 0.1 * torch.randn(1, 128, 128, generator=torch.Generator().manual_seed(1))).clamp(0.5, 1.3)
    plain, textured = paint(2)[0], paint(2, CLEAN * pores)[0]
    torch.testing.assert_close(textured, plain * pores, rtol=1e-4, atol=1e-5)


def test_the_number_of_spots_is_drawn_between_the_limits():
    assert not paint(0, count=(0, 0))[1].any()
    assert {label(paint(seed, count=(1, 1))[1][0].numpy())[1] for seed in range(10)} == {1}
    few, many = (sum(float(paint(seed, count=(n, n))[1].sum()) for seed in range(8)) for n in (2, 12))
    assert many > 3 * few


def test_spots_grow_with_the_picture():
    small, large = (
        sum(float((paint(seed, CLEAN[:, :1, :1].expand(3, size, size), (8, 8))[1] > 0.05).float().mean()) for seed in range(12))
        for size in (64, 128)
    )
    assert small == pytest.approx(large, rel=0.35)


def test_without_skin_nothing_is_painted():
    source, opacity = paint_blemishes(CLEAN, torch.full((1, 128, 128), 0.9), torch.Generator())
    assert torch.equal(source, CLEAN) and source is not CLEAN
    assert not opacity.any()


def test_kinds_are_shares():
    assert float(TINT_SHARES.sum()) == pytest.approx(1)
    assert TINTS.shape == (len(TINT_SHARES), 3)
