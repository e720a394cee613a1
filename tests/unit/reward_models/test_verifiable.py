"""Each verifiable reward by itself: range, direction, what it sees and what it is blind to."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from portraitkit.faces.regions import region_masks
from portraitkit.pictures.images import ciede2000, lab_to_srgb, luminance, srgb_to_lab
from preference_data.people.warps import landmark_field, pixel_grid, sample_at
from reward_models import verifiable
from reward_models.filters import blur
from reward_models.photos import Photos
from reward_models.verifiable import REWARDS

NAMES = tuple(REWARDS)
LOCAL = tuple(name for name, reward in REWARDS.items() if reward.local)


def noise(image: Tensor, std: float) -> Tensor:
    return (image + std * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def warp(image: Tensor, photos: Photos, strength: float) -> Tensor:
    """Faces narrower and longer."""
    rows = []
    for picture, mesh in zip(image, photos.meshes, strict=True):
        shift = strength * (mesh - mesh.mean(0)) * torch.tensor([-1.0, 1.0])
        rows.append(sample_at(picture, pixel_grid(128, 128) + landmark_field(mesh, shift, 128)))
    return torch.stack(rows)


def tint(image: Tensor, mask: Tensor, a: float, *, grey: float = 0.0) -> Tensor:
    """Inside the mask redder by `a` CIELAB units, and with a share of the chroma gone."""
    lab = srgb_to_lab(image) * torch.tensor([1, 1 - grey, 1 - grey]).view(3, 1, 1) + torch.tensor([0, a, 0]).view(3, 1, 1)
    return torch.lerp(image, lab_to_srgb(lab), mask)


def lips(photos: Photos) -> Tensor:
    return torch.stack([region_masks(mesh, 128, 128, only=("lips",))["lips"] for mesh in photos.meshes])


def double(image: Tensor) -> Tensor:
    return F.interpolate(image, scale_factor=2, mode="bilinear")


@pytest.fixture(scope="module")
def large(photos) -> Photos:
    """The same photos at 256 px."""
    return Photos.build(double(photos.source), 2 * photos.meshes, opacity=double(photos.opacity), clean=double(photos.clean).contiguous())


def test_the_weights_are_what_runs_were_measured_with():
    assert {name: reward.weight for name, reward in REWARDS.items() if not reward.guard} == {
        "blemish_removal": 0.4,
        "texture": 0.2,
        "skin_tone": 0.15,
        "identity": 0.15,
        "clarity": 0.1,
    }


def test_one_reward_guards_the_others_and_credit_reaches_an_eighth():
    assert verifiable.GUARDS == ("own_color",) and REWARDS["own_color"].weight == 1
    assert {name: REWARDS[name].local.reach for name in LOCAL} == {"blemish_removal": 1, "texture": 1, "clarity": 1}


def smooth(image: np.ndarray, sigma: float) -> np.ndarray:
    return np.stack([gaussian_filter(channel, sigma, mode="nearest", truncate=3) for channel in image])


def inside(image: np.ndarray, mask: np.ndarray, sigma: float) -> np.ndarray:
    """The average over the mask alone."""
    return smooth(image * mask, sigma) / smooth(mask, sigma).clip(1e-4)


def over(values: np.ndarray, mask: np.ndarray) -> float:
    return float((values * mask).sum() / mask.sum() / len(values))


def errors_written_again(candidate: Tensor, photos: Photos) -> dict[str, float]:
    """Each error of one candidate of 128 pixels, from the docstrings, with scipy's filters."""
    after, before, clean = candidate[0].double(), photos.source[0].double(), photos.clean[0].double().numpy()
    skin, features, opacity = (mask[0].double().numpy() for mask in (photos.skin, photos.features, photos.opacity))
    spots = (opacity > 0.05).astype(float)
    untouched = skin * (smooth(spots, 1.5) <= 0.02)
    relative = [image - inside(image, untouched, 5) for image in (after.numpy(), before.numpy(), clean)]
    light = [luminance(image[None])[0].numpy() for image in (after, before)]
    fine = [image - smooth(image, 2) for image in light]
    edges = [(np.diff(light[0], axis=axis), np.diff(light[1], axis=axis)) for axis in (1, 2)]
    masks = features[:, :-1], features[:, :, :-1]
    lab = [srgb_to_lab(image[None])[0].numpy() for image in (after, before)]
    mouth = lips(photos)[0].double().numpy()
    redness, solid = inside(lab[1], untouched, 4)[1:2], untouched > 0.5
    reddest = (solid & (redness >= np.quantile(redness[solid], 0.75))).astype(float)

    def changed(mask: np.ndarray, sigma: float) -> np.ndarray:
        return ciede2000(*(torch.from_numpy(inside(image, mask, sigma))[None] for image in lab))[0].numpy()

    edited = luminance((after - before)[None])[0].numpy()
    return {
        "blemish_residual": over((relative[0] - relative[2]) ** 2, spots) / over((relative[1] - relative[2]) ** 2, spots),
        "texture_error": over((fine[0] - fine[1]) ** 2, untouched) ** 0.5 / (over(fine[1] ** 2, untouched) ** 0.5 + 2e-3),
        "clarity_error": sum(over((one - two) ** 2, mask) for (one, two), mask in zip(edges, masks, strict=True)) ** 0.5
        / (sum(over(two**2, mask) for (_, two), mask in zip(edges, masks, strict=True)) ** 0.5 + 2e-3),
        "tone_error": over(((inside(lab[0], untouched, 4) - inside(lab[1], untouched, 4)) ** 2).sum(0, keepdims=True) ** 0.5, untouched),
        "lip_change": over(changed(mouth, 2), mouth),
        "redness_change": over(changed(untouched, 4), reddest),
        "residual_grain": 100 * over((edited - smooth(edited, 1)) ** 2, skin) ** 0.5,
    }


@pytest.mark.parametrize("row", range(4))
def test_each_error_is_what_its_docstring_says(photos, row):
    one = photos.select(slice(row, row + 1))
    candidate = noise(torch.lerp(one.source, one.clean, 0.6) * torch.tensor([0.97, 0.94, 0.9]).view(3, 1, 1), 0.015)
    found = {name: float(getattr(verifiable, name)(candidate, one)) for name in errors_written_again(candidate, one)}
    assert found == pytest.approx(errors_written_again(candidate, one), rel=2e-4)


def test_spots_too_faint_to_count_leave_all_skin_untouched(photos):
    faint = replace(photos, opacity=torch.full_like(photos.opacity, 0.05))
    assert torch.equal(verifiable._untouched_skin(faint), photos.skin)
    dots = torch.zeros_like(photos.opacity).index_fill_(3, torch.tensor([60]), 1.0)
    assert not verifiable._untouched_skin(replace(photos, opacity=dots))[..., 57:64].any()


def test_the_error_of_clarity_is_nothing_unchanged_and_rises_with_blur(photos):
    assert not verifiable.clarity_error(photos.source, photos).any()
    blurred = [torch.lerp(photos.source, blur(photos.source, 2.0), share) for share in (0.3, 0.6)]
    light, strong = (verifiable.clarity_error(candidate, photos) for candidate in blurred)
    torch.testing.assert_close(strong, 2 * light, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(REWARDS["clarity"](blurred[1], photos), 1 / (1 + (strong / 0.5).square()))


@pytest.mark.parametrize("name", NAMES)
def test_any_picture_scores_in_0_1(photos, name):
    static = torch.rand(photos.source.shape, generator=torch.Generator().manual_seed(0))
    inverse = 1 - photos.source
    for candidate in (photos.source, photos.clean, static, inverse, torch.zeros_like(static), torch.ones_like(static)):
        values = REWARDS[name](candidate, photos)
        assert values.shape == (8,)
        assert ((values >= 0) & (values <= 1)).all()


FAULTS = {
    "blemish_removal": lambda photos, t: torch.lerp(photos.clean, photos.source, t),
    "texture": lambda photos, t: noise(photos.source, 0.04 * t),
    "texture, smoothing": lambda photos, t: torch.lerp(photos.source, blur(photos.source, 2.0), t),
    "skin_tone": lambda photos, t: photos.source * (1 - 0.2 * t),
    "skin_tone, colour": lambda photos, t: (photos.source * (1 + torch.tensor([0.1, 0.0, -0.1]).view(3, 1, 1) * t)).clamp(0, 1),
    "own_color, lips": lambda photos, t: tint(photos.source, lips(photos), 0, grey=0.7 * t),
    "own_color, lipstick": lambda photos, t: tint(photos.source, lips(photos), 15 * t),
    "own_color, redness": lambda photos, t: tint(photos.source, photos.skin, -12 * t),
    "identity": lambda photos, t: warp(photos.clean, photos, 0.4 * t),
    "clarity": lambda photos, t: torch.lerp(photos.source, blur(photos.source, 2.0), t),
    "clarity, sharpening": lambda photos, t: photos.source + t * (photos.source - blur(photos.source, 1.0)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_it_falls_with_the_strength_of_its_own_fault(photos, fault):
    reward = REWARDS[fault.split(",")[0]]
    scores = torch.stack([reward(FAULTS[fault](photos, t), photos) for t in (0.0, 0.25, 0.5, 0.75, 1.0)])
    assert (scores[0] > 0.99).all()
    assert (scores.diff(dim=0) < 1e-4).all()
    assert (scores[-1] < 0.6).all()


@pytest.mark.parametrize("name", NAMES)
def test_candidates_do_not_depend_on_each_other(photos, retouches, name):
    candidates = noise(0.5 * (retouches + photos.source), 0.01)
    together = REWARDS[name](candidates, photos)
    order = torch.tensor([6, 2, 2, 0])
    torch.testing.assert_close(REWARDS[name](candidates[order], photos.select(order)), together[order], rtol=1e-4, atol=1e-4)
    alone = torch.cat([REWARDS[name](candidates[i : i + 1], photos.select(torch.tensor([i]))) for i in range(8)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("case", "tolerance"),
    [("source", 0.02), ("clean", 0.02), ("half", 0.02), ("bright", 0.04), ("blurred", 0.15), ("warped", 0.1)],
)
def test_resolution_hardly_matters(photos, large, name, case, tolerance):
    """The same picture twice as large. Faults of one pixel's size (noise, thin grids) are other faults then, and differ more."""
    candidate = {
        "source": photos.source,
        "clean": photos.clean,
        "half": 0.5 * (photos.source + photos.clean),
        "bright": (photos.clean * 1.06).clamp(0, 1),
        "blurred": blur(photos.clean, 1.5),
        "warped": warp(photos.clean, photos, 0.1),
    }[case]
    torch.testing.assert_close(REWARDS[name](double(candidate), large), REWARDS[name](candidate, photos), rtol=0, atol=tolerance)


def test_what_counts_as_fine_detail_scales_with_the_picture(photos, large):
    """Waves of 24 px are mostly shading to a filter of 2 px; at 256 px they must not become less of a detail."""
    waves = photos.source + 0.1 * (torch.arange(128) * torch.pi / 12).sin()
    small = verifiable.texture_error(waves, photos)
    torch.testing.assert_close(verifiable.texture_error(double(waves), large), small, rtol=0.25, atol=0)


@pytest.mark.parametrize("name", LOCAL)
def test_the_error_map_adds_up_to_the_reward(photos, name):
    local = REWARDS[name].local
    assert local is not None
    candidate = noise(0.5 * (photos.source + photos.clean), 0.02)
    error = local.map(candidate, photos)
    assert (error >= 0).all()
    torch.testing.assert_close(local.curve(error.sum((1, 2, 3))), REWARDS[name](candidate, photos))


def test_each_error_map_is_empty_off_its_own_region(photos):
    candidate = noise(photos.source, 0.05)
    assert not verifiable.blemish_map(candidate, photos)[photos.opacity <= 0.05].any()
    assert not verifiable.texture_map(candidate, photos)[(photos.skin == 0) | (photos.opacity > 0.05)].any()
    assert not verifiable.clarity_map(candidate, photos)[photos.features == 0].any()


def test_blemish_residual_is_the_squared_share_that_is_left(photos):
    for left in (0.0, 0.3, 1.0, 1.5):
        residual = verifiable.blemish_residual(torch.lerp(photos.clean, photos.source, left), photos)
        torch.testing.assert_close(residual, torch.full((8,), left**2), rtol=1e-3, atol=1e-5)
    assert not REWARDS["blemish_removal"](torch.lerp(photos.clean, photos.source, 1.5), photos).any()


def test_blemish_removal_does_not_see_an_even_change_of_the_whole_picture(photos):
    """Where some untouched skin is within reach of every spot, that is; a spot too wide for it is compared as it is."""
    within_reach = blur(verifiable._untouched_skin(photos), 5.0) > 1e-4
    rows = (within_reach | (photos.opacity <= 0.05)).flatten(1).all(1)
    assert rows.sum() >= 6
    half = 0.5 * (photos.source + photos.clean)
    tinted = half + torch.tensor([0.1, -0.2, 0.0]).view(3, 1, 1)
    before, after = (verifiable.blemish_residual(image, photos)[rows] for image in (half, tinted))
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


def test_blemish_removal_does_not_apply_without_blemishes(photos):
    opacity = photos.opacity.clone()
    opacity[3] = 0.05  # too faint to count
    values = REWARDS["blemish_removal"](photos.clean, replace(photos, opacity=opacity))
    assert values[3].isnan()
    assert values[torch.arange(8) != 3].isfinite().all()


def test_without_a_clean_portrait_spots_are_compared_with_the_skin_around_them(photos):
    unknown = replace(photos, clean=torch.full_like(photos.clean, torch.nan))
    spots = photos.opacity > 0.05
    untouched, filled = photos.source, torch.where(spots, photos.source - verifiable._stands_out(photos.source, photos), photos.source)
    torch.testing.assert_close(verifiable.blemish_residual(untouched, unknown), torch.ones(8))
    assert (REWARDS["blemish_removal"](filled, unknown) > 0.95).all()


def test_texture_looks_away_from_blemishes_and_features(photos):
    changed = torch.where((photos.opacity > 0.05) | (photos.features > 0.99), 0.5, photos.source)
    assert (REWARDS["texture"](changed, photos) > 0.75).all()
    assert (REWARDS["texture"](torch.where(photos.skin > 0.99, 0.5, photos.source), photos) < 0.4).all()


def test_texture_error_is_about_one_when_all_pores_are_gone(photos):
    error = verifiable.texture_error(torch.full_like(photos.source, 0.5), photos)
    assert ((error > 0.75) & (error <= 1)).all()


def test_half_a_unit_of_tone_is_free(photos):
    for factor in (0.995, 0.98):
        changed = photos.source * factor
        shift = (srgb_to_lab(changed) - srgb_to_lab(photos.source)).norm(dim=1, keepdim=True)
        mean = (shift * photos.skin).sum((1, 2, 3)) / photos.skin.sum((1, 2, 3))
        torch.testing.assert_close(verifiable.tone_error(changed, photos), mean, rtol=0.25, atol=0.05)
        expected = torch.exp(-((verifiable.tone_error(changed, photos) - 0.5).clamp_min(0) / 4).square())
        torch.testing.assert_close(REWARDS["skin_tone"](changed, photos), expected)
    assert (REWARDS["skin_tone"](photos.source * 0.995, photos) == 1).all()
    assert (REWARDS["skin_tone"](photos.source * 0.97, photos) < 1).all()


def test_own_color_is_even_at_4_and_hardly_falls_below_2(photos, monkeypatch):
    monkeypatch.setattr(verifiable, "lip_change", lambda candidate, photos: torch.tensor([0.0, 2.0, 4.0, 6.0]))
    monkeypatch.setattr(verifiable, "redness_change", lambda candidate, photos: torch.tensor([0.0, 0.0, 4.0, 0.0]))
    values = verifiable.own_color(photos.source[:4], photos.select(slice(0, 4)))
    assert values[0] > 0.998 and values[1] > 0.96 and values[2] == 0.5 and values[3] < 0.04


def test_lips_and_redness_are_their_own_and_not_their_spots_or_detail(photos):
    """A tint of the lips is measured on the lips alone, as it is there; spots, and detail of a pixel or two, do not count."""
    tinted = tint(photos.source, lips(photos), 10)
    inside = ciede2000(srgb_to_lab(tinted), srgb_to_lab(photos.source))
    mean = (inside * lips(photos)).sum((1, 2, 3)) / lips(photos).sum((1, 2, 3))
    torch.testing.assert_close(verifiable.lip_change(tinted, photos), mean, rtol=0.25, atol=0)
    assert (verifiable.redness_change(tinted, photos) < 0.3).all()
    for unseen in (photos.clean, noise(photos.source, 0.02)):
        assert (REWARDS["own_color"](unseen, photos) > 0.99).all()


@pytest.mark.parametrize("fault", ["lips greyed", "lips tinted", "redness drained"])
def test_own_color_asks_as_much_on_dark_skin_as_on_light(photos, fault):
    """The same people with skin of L* 58, 35 and 23: the difference that is measured is the same within a third."""
    changes = []
    for light in (1.0, 0.6, 0.4):
        tone = torch.tensor([light, light**0.5, light**0.5]).view(3, 1, 1)
        source, clean = (lab_to_srgb(srgb_to_lab(image) * tone) for image in (photos.source, photos.clean))
        dark = replace(photos, source=source, clean=clean)
        candidate = {
            "lips greyed": tint(source, lips(photos), 0, grey=0.5),
            "lips tinted": tint(source, lips(photos), 10),
            "redness drained": tint(source, photos.skin, -8),
        }[fault]
        measure = verifiable.redness_change if fault == "redness drained" else verifiable.lip_change
        changes.append(measure(candidate, dark).mean())
    assert max(changes) < 1.35 * min(changes)


def test_identity_is_even_at_040_and_flat_below_025(photos, monkeypatch):
    monkeypatch.setattr(verifiable, "identity_change", lambda candidate, photos: torch.tensor([0.0, 0.25, 0.40, 0.6]))
    rows = photos.select(torch.arange(4))
    values = verifiable.identity(rows.source, rows)
    assert values[0] > 0.999 and values[1] > 0.95 and values[2] == 0.5 and values[3] < 0.02


def test_identity_compares_with_the_person_of_the_same_row(photos):
    opposite = torch.tensor([0, 2])  # one on each side of the morph
    pair = photos.select(opposite)
    assert (verifiable.identity_change(photos.clean[opposite], pair) < 1e-3).all()
    assert (verifiable.identity_change(photos.clean[opposite], replace(pair, identity=pair.identity.flip(0))) > 0.4).all()


@pytest.mark.parametrize("name", ["texture", "skin_tone", "clarity"])
def test_an_empty_mask_asks_for_nothing(photos, name):
    nothing = torch.zeros_like(photos.skin)
    values = REWARDS[name](torch.rand_like(photos.source), replace(photos, skin=nothing, features=nothing))
    assert (values > 0.999).all()


def test_a_black_photo_is_scored(photos):
    black = replace(photos, source=torch.zeros_like(photos.source), clean=torch.zeros_like(photos.clean))
    for name in NAMES:
        values = REWARDS[name](black.source, black)
        assert ((values >= 0) & (values <= 1)).all(), name
    assert (REWARDS["texture"](noise(black.source, 0.05), black) < 0.1).all()
