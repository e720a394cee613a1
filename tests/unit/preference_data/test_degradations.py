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
from preference_data.people.synthetic_pairs import SPOTS, stage_of
from preference_data.schema import DIMENSIONS

LEVELS = (0.25, 0.5, 0.75, 1.0)


@pytest.fixture(scope="module")
def stages():
    return [stage_of(make_case("train", seed, count=SPOTS)) for seed in range(4)]


def detail(pictures, mask):
    """Standard deviation of the high frequencies inside a mask."""
    high = pictures - gaussian_blur(pictures, kernel_size=[7, 7], sigma=[1.2, 1.2])
    return (high.square() * mask).sum((1, 2, 3)).div(mask.sum() * 3).sqrt()


def spots(stage, pictures):
    """What is left of the blemishes: mean absolute error where they were."""
    return ((pictures - stage.clean).abs() * stage.opacity).sum((1, 2, 3))


def whiteness(stage, pictures):
    chroma = pictures.amax(1, keepdim=True) - pictures.amin(1, keepdim=True)
    return (-chroma * stage.skin).sum((1, 2, 3))


def strangeness(stage, pictures):
    with torch.no_grad():
        vectors = identity_embedding(pictures, stage.mesh[None].expand(len(pictures), -1, -1))
        return identity_distance(vectors, identity_embedding(stage.clean[None], stage.mesh[None]).expand_as(vectors))


def region(stage, name):
    return region_masks(stage.mesh, *stage.clean.shape[-2:], only=(name,))[name]


def dark_detail(stage, pictures):
    """Negative detail of the skin: what freckles and moles are."""
    inner = -F.max_pool2d(-stage.skin, 9, 1, 4)
    return ((pictures - gaussian_blur(pictures, kernel_size=[13, 13], sigma=[2.3, 2.3])).clamp_max(0) * inner).sum((1, 2, 3))


def moved(stage, pictures):
    """How far the lower face is from the honest retouch's."""
    return (pictures - stage.clean).square()[..., stage.clean.shape[-1] // 2 :, :].mean((1, 2, 3))


INSTRUMENTS = {
    "over_smoothing": lambda stage, pictures: -detail(pictures, stage.skin),
    "plastic_patches": lambda stage, pictures: -detail(pictures, stage.skin),
    "lost_marks": dark_detail,
    "pale_lips": lambda stage, pictures: -((pictures[:, :1] - pictures[:, 1:2]) * region(stage, "lips")).sum((1, 2, 3)),
    "white_eyes_teeth": lambda stage, pictures: (pictures * region(stage, "eyes")).sum((1, 2, 3)),
    "slim_jaw": moved,
    "halo": lambda stage, pictures: detail(pictures, 1 - stage.skin),
    "left_blemishes": spots,
    "over_whitening": whiteness,
    "identity_warp": strangeness,
    "grid": lambda stage, pictures: detail(pictures, stage.skin),
    "blur": lambda stage, pictures: -detail(pictures, 1 - stage.skin),
    "noise": lambda stage, pictures: detail(pictures, 1 - stage.skin),
    "jpeg": lambda stage, pictures: (pictures - stage.clean).square().mean((1, 2, 3)),
}


def test_every_kind_costs_something_and_every_dimension_has_a_kind():
    assert EFFECTS.keys() == DEGRADATIONS.keys() == INSTRUMENTS.keys()
    assert tuple(GROSS) == tuple(RETOUCHED) == DIMENSIONS
    assert {kind for kinds in (GROSS, RETOUCHED) for some in kinds.values() for kind in some} == DEGRADATIONS.keys()
    for dimension, kinds in (*GROSS.items(), *RETOUCHED.items()):
        assert all(EFFECTS[kind][dimension] == 1.0 for kind in kinds)


def test_only_who_has_freckles_or_moles_can_lose_them(stages):
    bare = replace(stages[0], clean=gaussian_blur(stages[0].clean, kernel_size=[13, 13], sigma=[2.5, 2.5]))
    spotted = bare.clean.clone()
    inner = (-F.max_pool2d(-bare.skin, 13, 1, 6) > 0.9)[0].nonzero()
    for y, x in inner[[len(inner) // 10, len(inner) // 2, -len(inner) // 10]].tolist():
        spotted[:, y : y + 2, x : x + 2] *= 0.55
    assert not has_marks(bare) and has_marks(replace(bare, clean=spotted))


def test_no_fault_is_the_honest_retouch(stages):
    for stage in stages:
        picture = degrade(stage, dict.fromkeys(DEGRADATIONS, 0.0), 5)
        assert (picture - stage.clean).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("kind", DEGRADATIONS)
@pytest.mark.parametrize("variant", [2, 3])
def test_more_strength_is_a_greater_fault(stages, kind, variant):
    """At every level of every person, by an instrument that knows nothing of the strength."""
    for stage in stages:
        pictures = torch.stack([degrade(stage, {kind: strength}, variant) for strength in (0.0, *LEVELS)])
        assert ((pictures >= 0) & (pictures <= 1)).all()
        measured = INSTRUMENTS[kind](stage, pictures)
        assert (measured.diff() > 0).all(), measured


def test_a_stronger_fault_leaves_every_blemish_that_a_weaker_one_leaves(stages):
    for variant in (2, 3):
        for stage in stages:
            weak, strong = (degrade(stage, {"left_blemishes": strength}, variant) - stage.clean for strength in (0.4, 0.65))
            assert (weak.abs() <= strong.abs() + 1.5 / 255).all()


def test_skin_faults_leave_the_rest_alone(stages):
    for kind in ("over_smoothing", "left_blemishes", "over_whitening"):
        for stage in stages:
            change = (degrade(stage, {kind: 1.0}, 3) - stage.clean).abs() * (stage.skin < 0.001)
            assert change.max() <= 1.5 / 255, kind


def test_sizes_follow_the_side():
    """Over-smoothing takes the same share of contrast from the same person at two sizes."""
    kept = []
    for size in (64, 128):
        stage = stage_of(make_case("train", 2, size=size, count=SPOTS))
        small = torch.nn.functional.avg_pool2d(torch.stack([stage.clean, degrade(stage, {"over_smoothing": 1.0}, 2)]), size // 32)
        inside = torch.nn.functional.avg_pool2d(stage.skin, size // 32)
        kept.append(float(detail(small, inside)[1] / detail(small, inside)[0]))
    assert kept[0] == pytest.approx(kept[1], abs=0.08)
