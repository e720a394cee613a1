"""What a tiny judge is shown of a pair."""

import pytest
import torch

from reward_models.judge.preference_task import (
    GAIN,
    SHOWN,
    as_taken,
    candidate_view,
    spots_view,
)

PHOTO = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25


@pytest.mark.parametrize("size", [(128, 128), (256, 256), (300, 200)])
def test_equal_pictures_give_a_grey_lower_half(size):
    photo = torch.rand(3, *size, generator=torch.Generator().manual_seed(1))
    view = candidate_view(photo, photo)
    assert view.shape == (3, 192, 96)
    assert torch.equal(view[:, 96:], torch.full((3, 96, 96), 0.5)) and view.min() >= 0 and view.max() <= 1


def test_the_candidate_stands_above_its_amplified_difference():
    retouched = PHOTO.clone()
    retouched[0, 60, 60] += 0.1
    view = candidate_view(PHOTO, retouched)
    assert torch.equal(view[:, :96], retouched[:, 16:112, 16:112])
    changed = (view[:, 96:] - 0.5).abs() > 1e-6
    assert changed.nonzero().tolist() == [[0, 44, 44]]
    assert float(view[0, 96 + 44, 44]) == pytest.approx(0.5 + 0.1 * GAIN, abs=1e-5)
    assert candidate_view(PHOTO, torch.ones_like(PHOTO))[:, 96:].max() <= 1


def test_what_each_way_of_showing_shows():
    first, second = PHOTO * 0.9, PHOTO * 1.1
    assert [torch.equal(*pair) for pair in zip(as_taken(PHOTO, first, second), (PHOTO, first, second), strict=True)] == [True] * 3
    shown = SHOWN["beside-difference"](PHOTO, first, second)
    assert torch.equal(shown[0], candidate_view(PHOTO, first)) and torch.equal(shown[1], candidate_view(PHOTO, second)) and len(shown) == 2
    shown = SHOWN["spots-and-difference"](PHOTO, first, second)
    assert torch.equal(shown[0], spots_view(PHOTO, first)) and torch.equal(shown[1], spots_view(PHOTO, second)) and len(shown) == 2
    assert set(SHOWN) == {"as-taken", "beside-difference", "spots-and-difference"}


def test_spots_stand_out_where_they_are_left_and_where_they_are_gone():
    """Two dark spots on even skin, of which the retouch takes one and adds another; the broad light over the face is not seen."""
    skin = torch.full((3, 128, 128), 0.6) + torch.linspace(0, 0.2, 128)
    photo, retouch = skin.clone(), skin + 0.05
    photo[:, 40:44, 40:44] -= 0.1
    photo[:, 40:44, 80:84] -= 0.1
    retouch[:, 40:44, 80:84] -= 0.1
    retouch[:, 90:94, 60:64] -= 0.1
    left, gone, new = spots_view(photo, retouch)[:, :96]
    place = {"gone": (25, 25), "left": (25, 65), "new": (75, 45)}
    for name, seen in (("gone", gone), ("left", left), ("new", new)):
        others = [float(seen[place[other]]) for other in place if other != name and (name, other) != ("left", "new")]
        assert float(seen[place[name]]) > 0.25 and max(others) < 0.02
    assert float(spots_view(photo, photo)[1:, :96].max()) == 0
