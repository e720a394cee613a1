"""Gaussian filters, plain and inside a mask."""

import pytest
import torch
from torchvision.transforms.functional import gaussian_blur

from reward_models.filters import blur, blur_inside, mean_over


def picture(height: int = 40, width: int = 56) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0, 3.3])
def test_blur_equals_torchvision_inside(sigma):
    reach = max(1, int(3 * sigma + 0.5))
    expected = gaussian_blur(picture(), kernel_size=[2 * reach + 1] * 2, sigma=[sigma, sigma])
    inside = (..., slice(reach, -reach), slice(reach, -reach))
    torch.testing.assert_close(blur(picture(), sigma)[inside], expected[inside], rtol=1e-5, atol=1e-6)


def test_blur_replicates_the_edge():
    flat = torch.full((1, 1, 9, 7), 0.3)
    torch.testing.assert_close(blur(flat, 4.0), flat)
    ramp = torch.arange(20.0).expand(1, 1, 4, 20)
    outer = torch.nn.functional.pad(ramp, (12, 12, 12, 12), mode="replicate")
    torch.testing.assert_close(blur(ramp, 2.0), blur(outer, 2.0)[..., 12:-12, 12:-12])


def test_blur_has_the_variance_asked_for():
    spot = torch.zeros(1, 1, 81, 61)
    spot[..., 40, 30] = 1
    spread = blur(spot, 4.0)[0, 0]
    rows, columns = torch.arange(81.0) - 40, torch.arange(61.0) - 30
    assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
    assert float((spread.sum(1) * rows**2).sum()) == pytest.approx(16, rel=0.05)
    assert float((spread.sum(0) * columns**2).sum()) == pytest.approx(16, rel=0.05)


def test_blur_inside_does_not_see_what_is_outside():
    mask = torch.zeros(2, 1, 40, 56)
    mask[..., 10:30, 10:40] = 1
    polluted = torch.where(mask > 0, picture(), 1000.0)
    torch.testing.assert_close(blur_inside(picture(), mask, 2.0), blur_inside(polluted, mask, 2.0))
    flat = torch.where(mask > 0, 0.3, -7.0).expand(-1, 3, -1, -1)
    inside = blur_inside(flat, mask, 2.0)
    torch.testing.assert_close(inside[..., 10:30, 10:40], torch.full((2, 3, 20, 30), 0.3))
    assert not inside[..., :3, :].any()  # nothing within reach


def test_blur_inside_a_full_mask_is_a_blur():
    torch.testing.assert_close(blur_inside(picture(), torch.ones(2, 1, 40, 56), 1.5), blur(picture(), 1.5))


def test_mean_over():
    values = torch.stack([torch.full((3, 4, 4), 2.0), torch.full((3, 4, 4), 5.0)])
    values[0, :, 0] = 100.0
    mask = torch.ones(2, 1, 4, 4)
    mask[0, :, 0] = 0
    torch.testing.assert_close(mean_over(values, mask), torch.tensor([2.0, 5.0]))
    mask[1, :, :2] = 0.5  # soft masks weigh
    values[1, :, :2] = 8.0
    torch.testing.assert_close(mean_over(values, mask)[1], torch.tensor((0.5 * 8 + 5) / 1.5))
    assert mean_over(values, torch.zeros(2, 1, 4, 4)).tolist() == [0.0, 0.0]
