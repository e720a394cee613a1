"""Warps and tones."""

import pytest
import torch

from preference_data.people.warps import landmark_field, pixel_grid, random_shape, random_tone, sample_at, skin_likeness


def picture(height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))


def points() -> torch.Tensor:
    """A face's worth of landmarks in the middle of 128 px."""
    return 34 + 60 * torch.rand(468, 2, generator=torch.Generator().manual_seed(1))


def test_pixel_grid_holds_centres_as_x_y():
    grid = pixel_grid(3, 5)
    assert grid.shape == (3, 5, 2)
    assert grid[0, 0].tolist() == [0.5, 0.5] and grid[2, 4].tolist() == [4.5, 2.5]


def test_sampling_at_the_grid_changes_nothing():
    torch.testing.assert_close(sample_at(picture(), pixel_grid(32, 48)), picture(), rtol=1e-4, atol=1e-5)


def test_sampling_is_bilinear_and_repeats_the_edge():
    shifted = sample_at(picture(), pixel_grid(32, 48) + torch.tensor([2.0, -3.0]))
    torch.testing.assert_close(shifted[:, 3:, :-2], picture()[:, :-3, 2:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shifted[:, :3, :-2], picture()[:, :1, 2:].expand(-1, 3, -1), rtol=1e-4, atol=1e-5)
    between = sample_at(picture(), torch.tensor([[[3.0, 0.5]]]))[:, 0, 0]
    torch.testing.assert_close(between, picture()[:, 0, 2:4].mean(1), rtol=1e-4, atol=1e-5)


def test_landmark_field_moves_the_face_and_not_the_frame():
    shift = torch.tensor([3.0, -2.0]).expand(468, 2)
    field = landmark_field(points(), shift, 128)
    assert field.shape == (128, 128, 2)
    x, y = points().long().unbind(-1)
    assert (field[y, x] - shift).norm(dim=-1).max() < 0.35
    assert field[:8].norm(dim=-1).max() < 0.3 and field[:, -8:].norm(dim=-1).max() < 0.3
    assert not landmark_field(points(), torch.zeros(468, 2), 128).any()


def test_landmark_field_averages_near_by_landmarks_only():
    shift = torch.where(points()[:, :1] < 64, torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0]))
    field = landmark_field(points(), shift, 128)
    torch.testing.assert_close(field[64, 40], torch.tensor([2.0, 0.0]), rtol=0, atol=0.2)
    torch.testing.assert_close(field[64, 88], torch.tensor([0.0, 2.0]), rtol=0, atol=0.2)


def test_random_shape_is_seeded_smooth_and_moderate():
    one, same, other = (random_shape(points(), 128, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    moved = one - points()
    assert 0.3 < float(moved.norm(dim=-1).mean()) < 12
    gaps = torch.cdist(points(), points()) + 1000 * torch.eye(468)
    neighbour = gaps.argmin(1)
    assert (moved - moved[neighbour]).norm(dim=-1).median() < 0.3 * moved.norm(dim=-1).median()


def test_skin_likeness_tells_skin_from_a_blue_wall():
    image = torch.tensor([0.2, 0.3, 0.8]).view(3, 1, 1).expand(3, 32, 32).clone()
    skin = torch.zeros(1, 32, 32)
    skin[:, 8:24, 8:24] = 1
    tone = torch.tensor([0.8, 0.6, 0.5]).view(3, 1, 1)
    image[:, 8:24, 8:24] = tone * torch.linspace(0.6, 1.0, 16)  # shading is not another colour
    image[:, :4, :4] = tone  # an ear outside the mask
    likeness = skin_likeness(image, skin)
    assert ((likeness >= 0) & (likeness <= 1)).all()
    assert likeness[:, 8:24, 8:24].min() > 0.8 and likeness[:, :4, :4].min() > 0.8
    assert likeness[:, 28:].max() < 0.1


@pytest.mark.parametrize("seed", range(4))
def test_random_tone_is_seeded_and_stays_in_range(seed):
    skin = torch.ones(1, 32, 48)
    one, same = (random_tone(picture(), skin, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(one, same)
    assert ((one >= 0) & (one <= 1)).all()
    assert (one - picture()).abs().mean() > 0.01


def test_random_tone_reaches_light_and_dark_skin():
    image = torch.tensor([0.75, 0.58, 0.48]).view(3, 1, 1).expand(3, 16, 16)
    means = torch.stack([random_tone(image, torch.ones(1, 16, 16), torch.Generator().manual_seed(seed)).mean() for seed in range(60)])
    assert means.min() < 0.42 and means.max() > 0.65


def test_random_tone_of_black_and_of_no_skin_is_finite():
    black = torch.zeros(3, 16, 16)
    assert random_tone(black, torch.zeros(1, 16, 16), torch.Generator().manual_seed(0)).isfinite().all()
