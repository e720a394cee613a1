"""Known faults: nothing at strength 0, more with more strength, and what they claim to cost is what instruments see."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from portraitkit.faces.identity import identity_distance, identity_embedding
from portraitkit.faces.regions import region_masks
from preference_data.people.degradations import DEGRADATIONS, EFFECTS, GROSS, RETOUCHED, degrade, has_marks
from preference_data.people.synthetic import make_case
from preference_data.people.synthetic_pairs import SPOTS
from preference_data.schema import DIMENSIONS

LEVELS = (0.25, 0.5, 0.75, 1.0)


@pytest.fixture(scope="module")
def cases():
    return [make_case("train", seed, count=SPOTS) for seed in range(4)]


def detail(pictures, mask):
    """Standard deviation of the high frequencies inside a mask."""
    high = pictures - gaussian_blur(pictures, kernel_size=[7, 7], sigma=[1.2, 1.2])
    return (high.square() * mask).sum((1, 2, 3)).div(mask.sum() * 3).sqrt()


def spots(case, pictures):
    """What is left of the blemishes: mean absolute error where they were."""
    return ((pictures - case.clean).abs() * case.opacity).sum((1, 2, 3))


def whiteness(case, pictures):
    chroma = pictures.amax(1, keepdim=True) - pictures.amin(1, keepdim=True)
    return (-chroma * case.skin).sum((1, 2, 3))


def strangeness(case, pictures):
    with torch.no_grad():
        vectors = identity_embedding(pictures, case.mesh[None].expand(len(pictures), -1, -1))
        return identity_distance(vectors, identity_embedding(case.clean[None], case.mesh[None]).expand_as(vectors))


def region(case, name):
    return region_masks(case.mesh, *case.clean.shape[-2:], only=(name,))[name]


def dark_detail(case, pictures):
    """Negative detail of the skin: what freckles and moles are."""
    inner = -F.max_pool2d(-case.skin, 9, 1, 4)
    return ((pictures - gaussian_blur(pictures, kernel_size=[13, 13], sigma=[2.3, 2.3])).clamp_max(0) * inner).sum((1, 2, 3))


def moved(case, pictures):
    """How far the lower face is from the honest retouch's."""
    return (pictures - case.clean).square()[..., case.clean.shape[-1] // 2 :, :].mean((1, 2, 3))


INSTRUMENTS = {
    "over_smoothing": lambda case, pictures: -detail(pictures, case.skin),
    "plastic_patches": lambda case, pictures: -detail(pictures, case.skin),
    "lost_marks": dark_detail,
    "pale_lips": lambda case, pictures: -((pictures[:, :1] - pictures[:, 1:2]) * region(case, "lips")).sum((1, 2, 3)),
    "white_eyes_teeth": lambda case, pictures: (pictures * region(case, "eyes")).sum((1, 2, 3)),
    "slim_jaw": moved,
    "halo": lambda case, pictures: detail(pictures, 1 - case.skin),
    "left_blemishes": spots,
    "over_whitening": whiteness,
    "identity_warp": strangeness,
    "grid": lambda case, pictures: detail(pictures, case.skin),
    "blur": lambda case, pictures: -detail(pictures, 1 - case.skin),
    "noise": lambda case, pictures: detail(pictures, 1 - case.skin),
    "jpeg": lambda case, pictures: (pictures - case.clean).square().mean((1, 2, 3)),
}


def test_every_kind_costs_something_and_every_dimension_has_a_kind():
    assert EFFECTS.keys() == DEGRADATIONS.keys() == INSTRUMENTS.keys()
    assert tuple(GROSS) == tuple(RETOUCHED) == DIMENSIONS
    assert {kind for kinds in (GROSS, RETOUCHED) for some in kinds.values() for kind in some} == DEGRADATIONS.keys()
    for dimension, kinds in (*GROSS.items(), *RETOUCHED.items()):
        assert all(EFFECTS[kind][dimension] == 1.0 for kind in kinds)


def test_only_who_has_freckles_or_moles_can_lose_them(cases):
    bare = replace(cases[0], clean=gaussian_blur(cases[0].clean, kernel_size=[13, 13], sigma=[2.5, 2.5]))
    spotted = bare.clean.clone()
    inner = (-F.max_pool2d(-bare.skin, 13, 1, 6) > 0.9)[0].nonzero()
    for y, x in inner[[len(inner) // 10, len(inner) // 2, -len(inner) // 10]].tolist():
        spotted[:, y : y + 2, x : x + 2] *= 0.55
    assert not has_marks(bare) and has_marks(replace(bare, clean=spotted))


def test_no_fault_is_the_honest_retouch(cases):
    for case in cases:
        picture = degrade(case, dict.fromkeys(DEGRADATIONS, 0.0), 5)
        assert (picture - case.clean).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("kind", DEGRADATIONS)
@pytest.mark.parametrize("variant", [2, 3])
def test_more_strength_is_a_greater_fault(cases, kind, variant):
    """At every level of every person, by an instrument that knows nothing of the strength."""
    for case in cases:
        pictures = torch.stack([degrade(case, {kind: strength}, variant) for strength in (0.0, *LEVELS)])
        assert ((pictures >= 0) & (pictures <= 1)).all()
        measured = INSTRUMENTS[kind](case, pictures)
        assert (measured.diff() > 0).all(), measured


def test_a_stronger_fault_leaves_every_blemish_that_a_weaker_one_leaves(cases):
    for variant in (2, 3):
        for case in cases:
            weak, strong = (degrade(case, {"left_blemishes": strength}, variant) - case.clean for strength in (0.4, 0.65))
            assert (weak.abs() <= strong.abs() + 1.5 / 255).all()


def test_skin_faults_leave_the_rest_alone(cases):
    for kind in ("over_smoothing", "left_blemishes", "over_whitening"):
        for case in cases:
            change = (degrade(case, {kind: 1.0}, 3) - case.clean).abs() * (case.skin < 0.001)
            assert change.max() <= 1.5 / 255, kind


def test_sizes_follow_the_side():
    """Over-smoothing takes the same share of contrast from the same person at two sizes."""
    kept = []
    for size in (64, 128):
        case = make_case("train", 2, size=size, count=SPOTS)
        small = torch.nn.functional.avg_pool2d(torch.stack([case.clean, degrade(case, {"over_smoothing": 1.0}, 2)]), size // 32)
        inside = torch.nn.functional.avg_pool2d(case.skin, size // 32)
        kept.append(float(detail(small, inside)[1] / detail(small, inside)[0]))
    assert kept[0] == pytest.approx(kept[1], abs=0.08)
