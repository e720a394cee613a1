"""What a reward knows about the photos."""

import pytest
import torch

from portraitkit.faces.identity import identity_embedding
from reward_models.photos import Photos, detect_blemishes


@pytest.fixture(scope="module")
def unknown(photos) -> Photos:
    """Two of the photos as a user's: nothing known but the landmarks, here with a depth."""
    meshes = torch.cat([photos.meshes[:2], torch.randn(2, 468, 1)], dim=-1)
    return Photos.build(photos.source[:2], meshes)


def test_masks_lie_in_0_1_and_skin_and_features_do_not_overlap(photos):
    for mask in (photos.skin, photos.features, photos.opacity):
        assert mask.shape == (8, 1, 128, 128)
        assert ((mask >= 0) & (mask <= 1)).all()
    assert (photos.skin + photos.features <= 1 + 1e-6).all()
    share = photos.features.sum((1, 2, 3)) / photos.skin.sum((1, 2, 3))
    assert ((share > 0.1) & (share < 0.5)).all()


def test_skin_and_features_are_where_the_landmarks_say(photos):
    rows = torch.arange(len(photos))

    def at(mask: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
        x, y = point.long().unbind(-1)
        return mask[rows, 0, y, x]

    eye = photos.meshes[:, [33, 133]].mean(1)
    cheek = photos.meshes[:, 50]
    assert (at(photos.features, eye) > 0.8).all() and (at(photos.skin, eye) < 0.2).all()
    assert (at(photos.skin, cheek) > 0.95).all() and (at(photos.features, cheek) < 0.05).all()


def test_what_is_known_is_taken_as_it_is(photos):
    known = Photos.build(photos.source, photos.meshes, opacity=photos.opacity, clean=photos.clean)
    assert torch.equal(known.opacity, photos.opacity) and torch.equal(known.clean, photos.clean)
    assert torch.equal(known.identity, identity_embedding(photos.clean, photos.meshes))


def test_what_is_unknown_is_found_or_nan(photos, unknown):
    assert unknown.clean.isnan().all()
    assert torch.equal(unknown.opacity, detect_blemishes(unknown.source, unknown.skin))
    torch.testing.assert_close(unknown.identity, identity_embedding(photos.source[:2], photos.meshes[:2]))
    assert unknown.meshes.shape == (2, 468, 2)
    assert torch.equal(unknown.skin, photos.skin[:2])


def test_select_repeats_every_field(photos):
    index = torch.tensor([5, 5, 0])
    group = photos.select(index)
    assert len(photos) == 8 and len(group) == 3
    for name in ("source", "meshes", "skin", "features", "opacity", "clean", "identity"):
        assert torch.equal(getattr(group, name), getattr(photos, name)[index]), name
