"""Known ways to please the rewards without retouching honestly: every one of them scores below the honest retouch, on every photo."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from portraitkit.faces.regions import region_masks
from portraitkit.pictures.images import lab_to_srgb, srgb_to_lab
from preference_data.people.warps import landmark_field, pixel_grid, sample_at
from reward_models.filters import blur
from reward_models.photos import Photos
from reward_models.reward_set import RewardSet, build_rewards
from tools.embedded.labels import LABELS

NAMES = ("blemish_removal", "texture", "skin_tone", "identity", "clarity", "own_color")
MARGIN = 0.05


def label(photos: Photos, kind: str, strength: float) -> Tensor:
    rows = zip(photos.source, photos.clean, photos.skin, strict=True)
    return torch.stack([LABELS[kind](source, clean, skin, strength) for source, clean, skin in rows])


def brighten(image: Tensor) -> Tensor:
    return (image * 1.06).clamp(0, 1)


def sharpen(image: Tensor) -> Tensor:
    return (image + 0.6 * (image - blur(image, 1.0))).clamp(0, 1)


def grid(image: Tensor) -> Tensor:
    lines = torch.zeros_like(image[:1, :1])
    lines[..., ::4, :] = lines[..., :, ::4] = 0.03
    return (image + lines).clamp(0, 1)


def noise(image: Tensor) -> Tensor:
    return (image + 0.02 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def soften(image: Tensor) -> Tensor:
    return blur(image, 0.6)


def narrow(image: Tensor, photos: Photos) -> Tensor:
    """Everyone's face 30 % narrower and longer."""
    rows = []
    for picture, mesh in zip(image, photos.meshes, strict=True):
        shift = (mesh - mesh.mean(0)) * torch.tensor([-0.3, 0.3])
        rows.append(sample_at(picture, pixel_grid(128, 128) + landmark_field(mesh, shift, 128)))
    return torch.stack(rows)


def blend(image: Tensor, photos: Photos) -> Tensor:
    """The next photo's face laid over this one's landmarks at 70 %, in this one's skin tone."""
    rows = []
    for i in range(len(image)):
        j = (i + 1) % len(image)
        field = landmark_field(photos.meshes[i], photos.meshes[j] - photos.meshes[i], 128)
        other = sample_at(image[j], pixel_grid(128, 128) + field)
        mine, theirs = ((picture * photos.skin[i]).sum((1, 2), keepdim=True) for picture in (image[i], other))
        rows.append(torch.lerp(image[i], (other * mine / theirs).clamp(0, 1), 0.7 * (photos.skin[i] + photos.features[i])))
    return torch.stack(rows)


def tint(image: Tensor, mask: Tensor, scale: tuple[float, float, float], shift: tuple[float, float, float]) -> Tensor:
    """CIELAB scaled and shifted inside a mask."""
    lab = srgb_to_lab(image) * torch.tensor(scale).view(3, 1, 1) + torch.tensor(shift).view(3, 1, 1)
    return torch.lerp(image, lab_to_srgb(lab), mask)


def lips(photos: Photos) -> Tensor:
    return torch.stack([region_masks(mesh, 128, 128, only=("lips",))["lips"] for mesh in photos.meshes])


def nose_and_cheeks(photos: Photos) -> Tensor:
    """Where the skin is redder than its median, smoothly."""
    red = blur(srgb_to_lab(photos.source)[:, 1:2], 4.0)
    median = torch.stack([a[skin > 0.5].median() for a, skin in zip(red, photos.skin, strict=True)]).view(-1, 1, 1, 1)
    return (red - median).clamp(0, 1) * photos.skin


CASES: dict[str, tuple[Callable[[Photos, Tensor], Tensor], tuple[str, ...]]] = {
    "untouched": (lambda photos, honest: photos.source, ("blemish_removal",)),
    "half done, mildest": (lambda photos, honest: label(photos, "half_done", 0.0), ("blemish_removal",)),
    "half done": (lambda photos, honest: label(photos, "half_done", 0.5), ("blemish_removal",)),
    "over-smoothed, mildest": (lambda photos, honest: label(photos, "over_smoothed", 0.0), ("blemish_removal", "texture", "clarity")),
    "over-smoothed": (lambda photos, honest: label(photos, "over_smoothed", 0.5), ("blemish_removal", "texture", "clarity")),
    "whitened, mildest": (lambda photos, honest: label(photos, "whitened", 0.0), ("blemish_removal", "skin_tone")),
    "whitened": (lambda photos, honest: label(photos, "whitened", 0.5), ("blemish_removal", "skin_tone")),
    "input brightened": (lambda photos, honest: brighten(photos.source), ("blemish_removal", "skin_tone")),
    "input sharpened": (lambda photos, honest: sharpen(photos.source), ("blemish_removal", "texture", "clarity")),
    "input with a grid": (lambda photos, honest: grid(photos.source), ("blemish_removal", "texture", "clarity")),
    "input, face warped": (lambda photos, honest: narrow(photos.source, photos), ("blemish_removal", "identity", "clarity")),
    "honest, face warped": (lambda photos, honest: narrow(honest, photos), ("identity", "texture", "clarity")),
    "honest, another's face": (lambda photos, honest: blend(honest, photos), ("blemish_removal", "texture", "clarity")),
    "honest, brightened": (lambda photos, honest: brighten(honest), ("skin_tone",)),
    "honest, sharpened": (lambda photos, honest: sharpen(honest), ("texture", "clarity")),
    "honest, with a grid": (lambda photos, honest: grid(honest), ("texture", "clarity")),
    "honest, with noise": (lambda photos, honest: noise(honest), ("texture", "clarity")),
    "honest, blurred": (lambda photos, honest: soften(honest), ("texture", "clarity")),
    "honest, lips greyed": (lambda photos, honest: tint(honest, lips(photos), (1, 0.5, 0.5), (0, 0, 0)), ("own_color",)),
    "honest, lipstick painted": (lambda photos, honest: tint(honest, lips(photos), (0.4, 0.4, 0.4), (24, 33, 15)), ("own_color",)),
    "honest, redness drained": (lambda photos, honest: tint(honest, nose_and_cheeks(photos), (1, 1, 1), (0, -9, 0)), ("own_color",)),
    "input, skin tanned over its spots": (
        lambda photos, honest: tint(photos.source, photos.skin, (0.85, 1, 1), (0, 6, 0)),
        ("blemish_removal", "skin_tone", "own_color"),
    ),
    "black": (lambda photos, honest: torch.zeros_like(honest), NAMES),
    "white": (lambda photos, honest: torch.ones_like(honest), NAMES),
}
"""How each is made, and the rewards that must notice it."""


@pytest.fixture(scope="session")
def parts(photos, retouches) -> dict[str, dict[str, Tensor]]:
    """Every reward of every case, and of the honest retouch."""
    rewards = build_rewards(NAMES, (), "product")
    cases = {"honest": retouches} | {name: make(photos, retouches) for name, (make, _) in CASES.items()}
    return {name: rewards.parts(candidates, photos) for name, candidates in cases.items()}


@pytest.mark.parametrize("how", ["product", "sum", "minimum"])
@pytest.mark.parametrize("case", CASES)
def test_the_honest_retouch_wins_on_every_photo(parts, case, how):
    """It holds for all three ways to combine; they differ in how far apart the two lie."""
    rewards = build_rewards(NAMES, (), how)
    assert (rewards.combined(parts[case]) < rewards.combined(parts["honest"]) - MARGIN).all()


@pytest.mark.parametrize("case", CASES)
def test_the_rewards_named_for_it_notice_it_on_every_photo(parts, case):
    for name in CASES[case][1]:
        assert (parts[case][name] < parts["honest"][name] - MARGIN).all(), name


def test_every_reward_of_every_case_lies_in_0_1(parts):
    for case, values in parts.items():
        for name, value in values.items():
            assert ((value >= 0) & (value <= 1)).all(), (case, name)


def test_the_honest_retouch_is_nearly_perfect(parts):
    assert (build_rewards(NAMES, (), "product").combined(parts["honest"]) > 0.98).all()
    assert all((value > 0.9).all() for value in parts["honest"].values())


def test_copying_the_input_earns_more_under_a_sum():
    """Why `product` is the default: four perfect rewards do not make up for a fifth that is 0."""
    copied = {name: torch.tensor([0.0 if name == "blemish_removal" else 1.0]) for name in NAMES}
    product, total = (float(build_rewards(NAMES, (), how).combined(copied)) for how in ("product", "sum"))
    assert product == pytest.approx(0.02**0.4)
    assert total == pytest.approx(0.6)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "identity"])
def test_without_any_one_reward_some_fault_is_paid_better(parts, name):
    """Identity is left out: whatever changes it here also changes texture, tone and clarity, which ask for more."""
    rest = build_rewards(tuple(other for other in NAMES if other != name), (), "product")
    full = build_rewards(NAMES, (), "product")

    def mean(rewards: RewardSet, case: str) -> float:
        return float(rewards.combined({key: parts[case][key] for key in rewards.functions}).mean())

    assert max(mean(rest, case) - mean(full, case) for case in CASES) > 0.012
