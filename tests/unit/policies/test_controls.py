"""The controls of a retouch: each does more of its own where it acts, and nothing elsewhere."""

from dataclasses import replace

import pytest
import torch

from policies.retoucher.retouch import faces as faces_module
from policies.retoucher.retouch.controls import combine, find_spots, open_skin, split_edit
from policies.retoucher.retouch.faces import FacePlan, apply_controls
from policies.retoucher.retouch.options import Controls
from portraitkit.errors import ConfigError
from portraitkit.faces.align import align_face
from portraitkit.faces.identity import identity_distance, identity_embedding
from portraitkit.faces.mesh import require_mesh
from portraitkit.faces.portraits import bundled_portraits
from portraitkit.faces.regions import region_masks
from portraitkit.pictures.images import ciede2000, lab_to_srgb, luminance, srgb_to_lab
from reward_models.filters import blur, mean_over

SIZE = 256
UNIT = SIZE / 128
NOTHING = Controls(blemishes=0.0, tone=0.0, texture=0.0)
PAINTED = {"pimple": (86, 138, (-6.0, 9.0, 2.0)), "mole": (172, 136, (-16.0, 3.0, 3.0))}
"""Column and row in the crop, and the change of L*, a* and b* in the middle."""


@pytest.fixture(scope="module")
def portrait():
    """A crop with a red spot on one cheek and a brown one on the other, painted on; its mesh; and the photo with both."""
    photo = bundled_portraits()["astronaut"]
    mesh = require_mesh(photo)[1]
    aligned = align_face(photo, mesh, SIZE)
    lab = srgb_to_lab(aligned.pixels)
    grid = torch.arange(SIZE)
    for column, row, color in PAINTED.values():
        distance = ((grid[None] - column) ** 2 + (grid[:, None] - row) ** 2).sqrt() / UNIT
        lab = lab + torch.sigmoid((1.5 - distance) * 4) * torch.tensor(color).view(3, 1, 1)
    return lab_to_srgb(lab), aligned.to_crop(mesh)


@pytest.fixture(scope="module")
def parts(portrait):
    """With a retoucher that brightens one side of the face and takes grain away."""
    crop, mesh = portrait
    smoothed = blur(crop[None], UNIT)[0]
    brighter = 0.05 * torch.linspace(1, -1, SIZE)
    return split_edit(crop, (smoothed + brighter).clamp(0, 1), mesh)


@pytest.mark.parametrize("skin", [(0.86, 0.70, 0.60), (0.62, 0.44, 0.34), (0.34, 0.23, 0.18)])
@pytest.mark.parametrize(("tint", "kind"), [((0.96, 0.66, 0.68), "blemish"), ((0.66, 0.55, 0.50), "mole"), ((0.60, 0.42, 0.40), "mole")])
def test_what_a_spot_is_does_not_depend_on_the_skins_colour(skin, tint, kind):
    """Inflammation leaves red light, pigment takes it: reflectances as blemishes are painted with."""
    distance = torch.cartesian_prod(torch.arange(64.0), torch.arange(64.0)).sub(32).norm(dim=1).view(64, 64) * 2
    spot = torch.sigmoid((4 - distance) * 2)
    pixels = torch.tensor(skin).view(3, 1, 1) * (1 - spot * (1 - torch.tensor(tint).view(3, 1, 1)))
    spots, _, _ = find_spots(srgb_to_lab(pixels), torch.ones(1, 64, 64, dtype=torch.bool))
    assert spots and {spot.kind for spot in spots} == {kind}


def change(parts, controls):
    before, after = srgb_to_lab(parts.crop), srgb_to_lab(combine(parts, controls, {}))
    return ciede2000(before, after)[0] - 1e-4


def spot_at(parts, name):
    column, row, _ = PAINTED[name]
    return next(n for n, spot in enumerate(parts.spots) if abs(spot.x - column) < 3 * UNIT and abs(spot.y - row) < 3 * UNIT)


@pytest.mark.parametrize("name", ["blemishes", "tone", "texture"])
def test_more_of_a_control_changes_more_and_only_where_its_part_is(parts, name):
    part = {"blemishes": parts.fill.abs() + parts.own.abs(), "tone": parts.tone.abs(), "texture": parts.texture.abs()}[name].sum(0)
    shares = [change(parts, replace(NOTHING, **{name: share})) for share in (0.25, 0.5, 0.75, 1.0)]
    assert torch.equal(combine(parts, NOTHING, {}), parts.crop)
    for less, more in zip(shares, shares[1:], strict=False):
        assert more.mean() > less.mean() * 1.1
        assert (more >= less - 0.02).all()
    whole = replace(NOTHING, **{name: 1.0})
    assert torch.equal(combine(parts, whole, {})[:, part == 0], parts.crop[:, part == 0])
    half = change(parts, replace(whole, strength=0.5))
    assert torch.allclose(half, shares[1], atol=1e-3)


def test_features_hair_and_all_else_off_the_skin_stay(parts, portrait):
    skin = open_skin(srgb_to_lab(parts.crop), portrait[1])[0]
    regions = region_masks(portrait[1], SIZE, SIZE)
    for name, least in (("eyes", 0.5), ("lips", 0.5), ("brows", 0.98)):
        assert skin[regions[name][0] > least].max() < 0.03
    after = combine(parts, Controls(tone=1.0, texture=1.0, moles="remove"), {})
    assert (after - parts.crop)[:, skin < 0.005].abs().max() < 2 / 255
    assert (after - parts.crop)[:, regions["face_oval"][0] == 0].abs().max() == 0


def test_a_blemish_goes_and_a_mole_stays_unless_asked(parts):
    kinds = {name: parts.spots[spot_at(parts, name)].kind for name in PAINTED}
    assert kinds == {"pimple": "blemish", "mole": "mole"}
    only = replace(NOTHING, blemishes=1.0)

    def contrast(picture, name):
        column, row, _ = PAINTED[name]
        lab = srgb_to_lab(picture)
        around = lab[:, row - 12 : row + 13, column - 12 : column + 13].flatten(1).median(1).values
        return (lab[:, row - 1 : row + 2, column - 1 : column + 2].flatten(1).mean(1) - around).norm()

    kept, removed = combine(parts, only, {}), combine(parts, replace(only, moles="remove"), {})
    assert contrast(kept, "pimple") < 0.3 * contrast(parts.crop, "pimple")
    assert contrast(kept, "mole") > 0.95 * contrast(parts.crop, "mole")
    assert contrast(removed, "mole") < 0.3 * contrast(parts.crop, "mole")
    clicked = combine(parts, only, {spot_at(parts, "pimple"): False, spot_at(parts, "mole"): True})
    assert torch.allclose(contrast(clicked, "pimple"), contrast(parts.crop, "pimple"), rtol=0.05)
    assert contrast(clicked, "mole") < 0.3 * contrast(parts.crop, "mole")


def test_tone_evens_and_neither_whitens_nor_tints(parts, portrait):
    skin = open_skin(srgb_to_lab(parts.crop), portrait[1])
    after = srgb_to_lab(combine(parts, replace(NOTHING, tone=1.0), {}))
    shift = mean_over((after - srgb_to_lab(parts.crop))[None], skin[None])
    assert abs(float(shift)) < 0.1
    assert change(parts, replace(NOTHING, tone=1.0))[skin[0] > 0.9].mean() > 0.5


def test_texture_softens_what_is_coarser_than_pores(parts, portrait):
    skin = (open_skin(srgb_to_lab(parts.crop), portrait[1]) * (parts.owner < 0))[None]

    def energy(picture, fine, coarse):
        light = luminance(picture[None])
        return mean_over(
            (blur(light, fine * UNIT) - blur(light, coarse * UNIT)).square() if fine else (light - blur(light, coarse * UNIT)).square(),
            skin,
        )

    after, little = (combine(parts, replace(NOTHING, texture=share), {}) for share in (1.0, Controls.texture))
    assert energy(after, 0.5, 2.5) < 0.9 * energy(parts.crop, 0.5, 2.5)
    assert energy(after, 0, 0.5) > 0.7 * energy(parts.crop, 0, 0.5)  # though this retoucher takes nearly all of it
    assert 0.85 < float(energy(little, 0, 0.5) / energy(parts.crop, 0, 0.5)) <= 1.02


def test_children_keep_tone_and_texture(parts):
    child = combine(parts, Controls(tone=1.0, texture=1.0, moles="remove", children=True), {})
    assert torch.equal(child, combine(parts, replace(NOTHING, blemishes=1.0), {}))
    assert change(parts, Controls(children=True)).max() > 1


def test_a_photo_with_nothing_to_retouch_stays():
    """Both portraits that packages ship, softened until no spot is left, and a retoucher that finds nothing to do."""
    for photo in bundled_portraits().values():
        mesh = require_mesh(photo)[1]
        aligned = align_face(photo, mesh, SIZE)
        clean = blur(aligned.pixels[None], 1.5 * UNIT)[0]
        in_crop = aligned.to_crop(mesh)
        skin = open_skin(srgb_to_lab(clean), in_crop)
        moved = ciede2000(srgb_to_lab(clean), srgb_to_lab(combine(split_edit(clean, clean, in_crop), Controls(), {})))
        assert mean_over(moved[None], skin[None]) < 1


def test_a_face_that_would_become_another_is_left(parts, portrait, monkeypatch):
    photo = bundled_portraits()["astronaut"]
    mesh = require_mesh(photo)[1]
    plan = FacePlan(align_face(photo, mesh, SIZE), mesh, parts)
    controls = Controls(tone=1.0, texture=1.0)
    assert apply_controls(photo, [plan], controls).faces == 1
    both = torch.stack([plan.aligned.pixels, combine(parts, controls, {})])
    moved = float(identity_distance(*identity_embedding(both, portrait[1][None]).split(1)))
    monkeypatch.setattr(faces_module, "IDENTITY_BOUND", moved * 0.99)
    left = apply_controls(photo, [plan], controls)
    assert left.faces == 0 and torch.equal(left.pixels, photo)
    assert len(left.skipped) == 1 and f"would move by {moved:.2f} in identity" in left.skipped[0]


def test_no_skin_and_no_spots():
    lab = torch.full((3, 128, 128), 50.0)
    for skin in (torch.zeros(1, 128, 128, dtype=torch.bool), torch.ones(1, 128, 128, dtype=torch.bool)):
        spots, owner, opacity = find_spots(lab, skin)
        assert not spots and (owner == -1).all() and opacity.max() == 0


@pytest.mark.parametrize("name", ["blemishes", "tone", "texture"])
def test_shares_only(name):
    with pytest.raises(ConfigError, match=rf"--{name} 1\.2: must be a share from 0 to 1"):
        Controls(**{name: 1.2})
