"""Near-duplicates: copies are found however they were saved, other people are not."""

import io

import numpy as np
import pytest
from PIL import Image

from portraitkit.pictures.images import from_pil, resize, to_pil
from preference_data.commands.lint import near_duplicates, perceptual_hash, small_copy
from preference_data.people.synthetic import make_case

LIMITS = {"max_bits": 6, "min_correlation": 0.99}


@pytest.fixture(scope="module")
def photos():
    return [make_case(split, seed).source for split in ("train", "held_out") for seed in range(12)]


def found(pictures, groups):
    smalls = np.stack([small_copy(picture) for picture in pictures])
    return near_duplicates(np.stack([perceptual_hash(small) for small in smalls]), smalls, groups, **LIMITS)


def jpeg(picture):
    file = io.BytesIO()
    to_pil(picture).save(file, "JPEG", quality=40)
    return from_pil(Image.open(file))


def test_other_people_are_no_duplicates(photos):
    """All are morphs of the same two portraits, in the same frame: harder than photos of strangers."""
    assert found(photos, ["train"] * 12 + ["held_out"] * 12) == []


@pytest.mark.parametrize("change", [jpeg, lambda x: resize(x, (90, 90)), lambda x: (x * 1.1).clamp(0, 1), lambda x: 1 - 0.9 * (1 - x)])
def test_copies_are_found_across_groups_only(photos, change):
    pictures = [*photos[:6], *map(change, photos[:6])]
    assert found(pictures, ["train"] * 6 + ["held_out"] * 6) == [(i, i + 6) for i in range(6)]
    assert found(pictures, ["train"] * 12) == []
