"""CIELAB against published values and scikit-image, and gradients that training can use."""

import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000, rgb2lab

from portraitkit.pictures.images import ciede2000, lab_to_srgb, luminance, srgb_to_lab


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


def test_ciede2000_has_its_published_values():
    """Sharma, Wu and Dalal 2005, table 1, rows 1, 7, 13, 17, 20, 25, 31 and 34; and scikit-image on colours of all hues."""
    table = [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 0, 0), (50, -1, 2), 2.3669),
        ((50, -0.001, 2.49), (50, 0.0011, -2.49), 4.7461),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((50, 2.5, 0), (58, 24, 15), 19.4535),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((22.7233, 20.0904, -46.694), (23.0331, 14.973, -42.5619), 2.0373),
        ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
    ]
    for one, other, value in table:
        assert float(ciede2000(pixel(*one), pixel(*other))) == pytest.approx(value, abs=1e-4)
    first, second = (np.random.default_rng(seed).uniform((0, -80, -80), (100, 80, 80), (16, 16, 3)) for seed in range(2))
    both = (torch.from_numpy(colours).permute(2, 0, 1) for colours in (first, second))
    assert np.abs(ciede2000(*both)[0].numpy() - deltaE_ciede2000(first, second)).max() < 1e-3


def test_the_gradient_of_ciede2000_is_finite_where_colours_are_equal_grey_or_black():
    colours = torch.tensor([[50.0, 10.0, 20.0], [50.0, 0.0, 0.0], [0.0, 0.0, 0.0]]).T[None, :, None].contiguous()
    candidate = colours.clone().requires_grad_()
    difference = ciede2000(candidate, colours)
    assert difference.max() < 1e-3
    difference.sum().backward()
    assert candidate.grad is not None and candidate.grad.isfinite().all()


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
