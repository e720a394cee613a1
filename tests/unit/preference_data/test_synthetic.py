"""Synthetic cases: seeded, of disjoint people, with a truth that is true."""

from collections import Counter
from dataclasses import fields

import pytest
import torch

from portraitkit.faces.regions import region_masks
from preference_data.people.synthetic import SPLITS, Case, make_case, make_person
from tools.embedded.labels import LABEL_SHARES, LABELS, make_label

SEEDS = range(8)


@pytest.fixture(scope="module")
def cases() -> dict[str, list[Case]]:
    return {split: [make_case(split, seed) for seed in SEEDS] for split in SPLITS}


def test_equal_seeds_give_equal_cases_and_other_seeds_others(cases):
    again = make_case("train", 3)
    for field in fields(Case):
        one, other = getattr(cases["train"][3], field.name), getattr(again, field.name)
        assert one == other if field.name == "morph" else torch.equal(one, other)
    assert len({case.morph for case in cases["train"]}) == len(SEEDS)
    assert not torch.equal(cases["train"][0].source, cases["train"][1].source)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    case = make_case("train", 1)
    make_label(case, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_splits_do_not_touch():
    ranges = sorted((low, high, split) for split, parts in SPLITS.items() for low, high in parts)
    for (_, high, one), (low, _, other) in zip(ranges[:-1], ranges[1:], strict=True):
        assert high < low and one != other


def test_people_come_from_their_own_split_and_from_all_of_it(cases):
    for split, made in cases.items():
        for low, high in SPLITS[split]:
            assert any(low <= case.morph <= high for case in made), (split, low)
        assert all(any(low <= case.morph <= high for low, high in SPLITS[split]) for case in made)


def test_pictures_and_masks_lie_in_0_1(cases):
    for case in sum(cases.values(), []):
        for name, channels in (("source", 3), ("clean", 3), ("opacity", 1), ("skin", 1)):
            value = getattr(case, name)
            assert value.shape == (channels, 128, 128)
            assert ((value >= 0) & (value <= 1)).all(), name


def test_source_and_clean_differ_where_the_opacity_says_and_nowhere_else(cases):
    for case in sum(cases.values(), []):
        change = (case.source - case.clean).abs().amax(0, keepdim=True)
        assert not change[case.opacity == 0].any()
        assert (change[case.opacity > 0] > 0).float().mean() > 0.98  # black or clipped pixels cannot change
        assert change[case.opacity > 0.5].mean() > 4 * change[(case.opacity > 0) & (case.opacity < 0.15)].mean()
        share = float((case.opacity > 0.05).sum() / (case.skin > 0.9).sum())
        assert 0.005 < share < 0.6


def test_skin_and_landmarks_belong_together(cases):
    """Mirrored faces too: their landmarks are renamed, so that the left eye is again on the picture's right."""
    for case in sum(cases.values(), []):
        drawn = region_masks(case.mesh, 128, 128)["skin"]
        assert torch.minimum(drawn, case.skin).sum() > 0.9 * torch.maximum(drawn, case.skin).sum()
        assert case.mesh[33, 0] < case.mesh[263, 0] and case.mesh[61, 0] < case.mesh[291, 0]
        assert case.mesh[10, 1] < case.mesh[1, 1] < case.mesh[152, 1]
        assert ((case.mesh > 0) & (case.mesh < 128)).all()


def test_a_person_is_the_same_at_any_size():
    """Only the pores, drawn a pixel at a time, are others."""
    small, large = (make_person("train", torch.Generator().manual_seed(2), size=size) for size in (64, 128))
    assert small.morph == large.morph
    torch.testing.assert_close(2 * small.mesh, large.mesh, rtol=1e-4, atol=1e-3)
    shrunk = torch.nn.functional.avg_pool2d(large.skin[None], 2)[0]
    assert (small.skin - shrunk).abs().mean() < 0.01


def test_count_of_blemishes_is_passed_on(cases):
    none = make_case("train", 0, count=(0, 0))
    assert not none.opacity.any() and torch.equal(none.source, none.clean)
    assert torch.equal(none.clean, cases["train"][0].clean)


def test_labels_are_seeded_and_of_the_kind_asked_for(cases):
    case = cases["train"][0]
    for kind, function in LABELS.items():
        label = make_label(case, torch.Generator().manual_seed(4), kind)
        strength = float(torch.rand(1, generator=torch.Generator().manual_seed(4)))
        assert torch.equal(label, function(case.source, case.clean, case.skin, strength))
    one, other = (make_label(case, torch.Generator().manual_seed(9)) for _ in range(2))
    assert torch.equal(one, other)


def test_kinds_come_in_their_shares(cases, monkeypatch):
    drawn: list[str] = []
    for kind in LABELS:
        monkeypatch.setitem(LABELS, kind, lambda source, clean, skin, strength, kind=kind: drawn.append(kind) or source)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        make_label(cases["train"][0], generator)
    for kind, share in LABEL_SHARES.items():
        assert Counter(drawn)[kind] / 2000 == pytest.approx(share, abs=0.04)
