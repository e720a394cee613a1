"""CIELAB against published values and scikit-image, and gradients that training can use."""

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from portraitkit.pictures.images import lab_to_srgb, luminance, srgb_to_lab


def pixel(*rgb):
    return torch.tensor(rgb, dtype=torch.float64).view(3, 1, 1)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
        ((119 / 255,) * 3, (50.03, 0, 0)),
    ],
)
def test_published_colours(rgb, lab):
    assert srgb_to_lab(pixel(*rgb)).flatten().tolist() == pytest.approx(lab, abs=0.02)


@pytest.mark.parametrize("brightest", [1.0, 0.1, 0.02])
def test_lab_agrees_with_scikit_image_from_bright_to_nearly_black(brightest):
    picture = np.random.default_rng(0).uniform(0, brightest, (16, 16, 3))
    got = srgb_to_lab(torch.from_numpy(picture).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    assert np.abs(got - rgb2lab(picture)).max() < 0.01


def test_batches_dtype_and_range_are_kept():
    pictures = torch.rand(2, 5, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    lab = srgb_to_lab(pictures)
    assert lab.shape == pictures.shape and lab.dtype == torch.float32
    torch.testing.assert_close(lab[1, 3], srgb_to_lab(pictures[1, 3]), rtol=0, atol=1e-3)
    assert torch.equal(srgb_to_lab(pixel(1.5, -0.5, 0.5)), srgb_to_lab(pixel(1, 0, 0.5)))


def test_the_gradient_is_finite_at_black_and_right_elsewhere():
    black = torch.zeros(3, 2, 2, requires_grad=True)
    srgb_to_lab(black).sum().backward()
    assert black.grad.isfinite().all()
    inside = (0.2 + 0.6 * torch.rand(3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).requires_grad_()
    assert torch.autograd.gradcheck(srgb_to_lab, (inside,))


def test_luminance_weighs_the_channels():
    primaries = torch.eye(3, dtype=torch.float64).view(3, 3, 1, 1)
    assert luminance(primaries).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])
    grey = torch.full((2, 3, 4, 5), 0.25)
    assert luminance(grey).shape == (2, 1, 4, 5)
    torch.testing.assert_close(luminance(grey), torch.full((2, 1, 4, 5), 0.25))


def test_lab_goes_back_to_the_same_rgb_with_a_finite_gradient():
    image = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(3))
    image[:, 0, :8] = torch.tensor([0.0, 0.01, 0.04, 0.05, 0.99, 1.0, 0.5, 0.001])
    assert (lab_to_srgb(srgb_to_lab(image)) - image).abs().max() < 2e-5
    lab = torch.tensor([[0.0, 50.0, 100.0, -5.0], [0.0, 120.0, 0.0, 3.0], [0.0, -120.0, 0.0, -3.0]])[..., None].requires_grad_()
    rgb = lab_to_srgb(lab)
    rgb.sum().backward()
    assert ((rgb >= 0) & (rgb <= 1)).all() and lab.grad is not None and lab.grad.isfinite().all()
