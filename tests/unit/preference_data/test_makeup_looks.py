"""Looks: seeded, of separate splits, with 1 to 3 items in colours that exist."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import rgb2lab

from preference_data.people.makeup import FAMILIES, SPLIT_OF_TENTH, draw_color, draw_lips, draw_look, split_of
from preference_data.people.makeup_shapes import SHAPES


@given(st.integers(0, 2**64), st.sampled_from(["train", "validation", "held_out"]))
def test_looks_are_seeded_and_of_their_split(seed, split):
    look = draw_look(random.Random(seed), split=split)
    assert look == draw_look(random.Random(seed), split=split)
    assert all(re.fullmatch("#[0-9A-F]{6}", item["color"]) and split_of(item["color"]) == split for item in look)
    regions = [SHAPES[item["shape"]].region for item in look]
    assert 1 <= len(look) <= 3 and len(set(regions)) == len(regions)
    assert regions == [region for region in ("lips", "blush", "eyeshadow") if region in regions]


def test_a_share_of_the_looks_is_empty_and_the_others_are_the_same():
    looks = [(draw_look(random.Random(seed)), draw_look(random.Random(seed), bare=0.15)) for seed in range(2000)]
    assert sum(not bare for _, bare in looks) / 2000 == pytest.approx(0.15, abs=0.025)
    assert all(look == bare for look, bare in looks if bare)


def test_numbers_and_shapes_come_in_their_shares():
    rng = random.Random(0)
    looks = [draw_look(rng) for _ in range(3000)]
    sizes = Counter(map(len, looks))
    assert all(sizes[n] / 3000 == pytest.approx(1 / 3, abs=0.04) for n in (1, 2, 3))
    shapes = Counter(item["shape"] for look in looks for item in look)
    assert set(shapes) == set(SHAPES)
    lips = sum(count for name, count in shapes.items() if name.startswith("LIP"))
    assert shapes["LIP_FULL_BASIC"] / lips == pytest.approx(0.5, abs=0.04)


def test_lips_alone_have_the_published_shape():
    assert [item["shape"] for item in draw_lips(random.Random(1))] == ["LIP_FULL_BASIC"]


def test_every_colour_belongs_to_one_split_in_the_stated_shares():
    count = Counter(split_of(f"#{value:06X}") for value in range(0, 2**24, 97))
    total = sum(count.values())
    for split in set(SPLIT_OF_TENTH):
        assert count[split] / total == pytest.approx(SPLIT_OF_TENTH.count(split) / 10, abs=0.01)


@pytest.mark.parametrize("region", FAMILIES)
def test_colours_are_those_of_a_family_unless_wide(region):
    def fits(color: str, slack: float = 1.5) -> bool:
        lightness, a, b = rgb2lab([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        chroma = (a * a + b * b) ** 0.5
        return any(
            f.lightness[0] - slack <= lightness <= f.lightness[1] + slack and f.chroma[0] - slack <= chroma <= f.chroma[1] + slack
            for f in FAMILIES[region]
        )

    rng = random.Random(3)
    assert all(fits(draw_color(region, rng, wide=0)) for _ in range(300))
    wide = [draw_color(region, rng, wide=1) for _ in range(300)]
    assert len(set(wide)) == 300 and sum(not fits(color) for color in wide) > 60


def test_shares_of_families_sum_to_1():
    for families in FAMILIES.values():
        assert sum(family.share for family in families) == pytest.approx(1)
