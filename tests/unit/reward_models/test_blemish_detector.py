"""Spots found without a painted mask. On real faces it is weak, see docs/rewards.md; these are the cases it must get right."""

import pytest
import torch

from preference_data.people.warps import pixel_grid
from reward_models.photos import detect_blemishes

TONE = torch.tensor([0.80, 0.62, 0.52]).view(1, 3, 1, 1)


def skin(size: int = 128) -> torch.Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[..., size // 8 : -size // 8, size // 8 : -size // 8] = 1
    return mask


def spot(factor: list[float], *, at: tuple[int, int] = (64, 64), radius: float = 3.0, size: int = 128) -> torch.Tensor:
    """Even skin with one soft spot that multiplies R, G and B."""
    inside = torch.exp(-((pixel_grid(size, size) - torch.tensor(at)).norm(dim=-1) / radius).square())
    return TONE.expand(1, 3, size, size) * (1 - inside * (1 - torch.tensor(factor).view(1, 3, 1, 1)))


@pytest.mark.parametrize("factor", [[0.7, 0.7, 0.7], [0.96, 0.66, 0.68], [0.66, 0.55, 0.50], [0.99, 0.83, 0.85]])
def test_dark_and_red_spots_are_found_where_they_are(factor):
    found = detect_blemishes(spot(factor, at=(50, 80)), skin())[0, 0]
    middle = (pixel_grid(128, 128) * found[..., None]).sum((0, 1)) / found.sum()
    assert found.max() > 0.9
    assert (middle - torch.tensor([50.0, 80.0])).norm() < 0.6
    far = (pixel_grid(128, 128) - torch.tensor([50.0, 80.0])).norm(dim=-1) > 14
    assert not found[far].any()


@pytest.mark.parametrize("factor", [[1.15, 1.15, 1.15], [0.99, 1.05, 1.0]])
def test_light_and_greenish_spots_are_not(factor):
    found = detect_blemishes(spot(factor), skin())
    near = (pixel_grid(128, 128) - 64).norm(dim=-1) < 4
    assert not found[0, 0][near].any()


def test_even_skin_and_slow_shading_have_none():
    even = TONE.expand(1, 3, 128, 128)
    assert not detect_blemishes(even, skin()).any()
    shaded = even * torch.linspace(0.8, 1.0, 128)
    assert not detect_blemishes(shaded, skin())[..., 40:-40, 40:-40].any()


def test_nothing_is_found_off_the_skin_and_nothing_off_the_skin_disturbs():
    picture = spot([0.7, 0.7, 0.7], at=(6, 6))
    assert not detect_blemishes(picture, skin()).any()
    one = spot([0.7, 0.7, 0.7])
    other = torch.where(skin() > 0, one, 0.0)
    torch.testing.assert_close(detect_blemishes(one, skin()), detect_blemishes(other, skin()))


def test_without_skin_or_light_there_is_nothing():
    assert not detect_blemishes(spot([0.7, 0.7, 0.7]), torch.zeros(1, 1, 128, 128)).any()
    assert not detect_blemishes(torch.zeros(1, 3, 128, 128), skin()).any()


def test_it_scales_with_the_picture():
    small = detect_blemishes(spot([0.7, 0.6, 0.6]), skin())
    large = detect_blemishes(spot([0.7, 0.6, 0.6], at=(128, 128), radius=6.0, size=256), skin(256))
    assert float(large.sum()) == pytest.approx(4 * float(small.sum()), rel=0.05)


def test_values_lie_in_0_1_and_rows_do_not_depend_on_each_other(photos):
    together = detect_blemishes(photos.source, photos.skin)
    assert ((together >= 0) & (together <= 1 + 1e-6)).all()
    alone = detect_blemishes(photos.source[3:4], photos.skin[3:4])
    torch.testing.assert_close(together[3:4], alone, rtol=1e-4, atol=1e-4)
