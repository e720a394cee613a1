"""Edits of crops go back where they came from, touch nothing outside the face, and leave the picture's fine detail."""

import pytest
import torch
import torch.nn.functional as F

from portraitkit.faces.align import align_face, face_edit, paste_edits, paste_mask
from portraitkit.faces.detect import detect_faces
from portraitkit.faces.mesh import face_mesh
from portraitkit.faces.regions import region_masks
from portraitkit.faces.warp import sample

SIZE = 128


def smoothed(pixels, kernel):
    return F.avg_pool2d(F.pad(pixels[None], [kernel // 2] * 4, mode="reflect"), kernel, 1)[0]


def retouch(pixels, mesh, editor, *, size=SIZE, strength=1.0):
    aligned = align_face(pixels, mesh, size)
    edit = face_edit(aligned, editor(aligned.pixels), mesh, *pixels.shape[1:])
    return paste_edits(pixels, [edit], strength=strength), edit


def drawn(edit):
    return edit.drawn(edit.top, edit.top + edit.height)


def uint8(pixels):
    return (pixels * 255).round().to(torch.uint8)


def brighter(crop):
    return (crop + 0.2).clamp(0, 1)


def inside(mesh, pixels, share=0.99):
    """The middle of the face, where the mask is 1."""
    return region_masks(mesh, *pixels.shape[1:], softness=0.1)["face_oval"] > share


def test_outside_the_oval_every_byte_stays(portraits, meshes):
    for name, pixels in portraits.items():
        result, edit = retouch(pixels, meshes[name], brighter)
        oval = region_masks(meshes[name], *pixels.shape[1:])["face_oval"]
        outside = (oval < 0.5)[0]
        assert torch.equal(uint8(result)[:, outside], uint8(pixels)[:, outside])
        assert torch.equal(result[:, outside], pixels[:, outside])
        assert drawn(edit)[1].max() == 1 and 0 < (result != pixels).any(0).float().mean() < 0.2


def test_strips_leave_no_trace(portraits, meshes, monkeypatch):
    """Small ones, of the picture and of what a crop is sampled from, give the same picture as one large one."""
    pixels, mesh = portraits["astronaut"], meshes["astronaut"]
    whole, _ = retouch(pixels, mesh, lambda crop: smoothed(crop, 5), size=64)
    monkeypatch.setattr("portraitkit.faces.align.STRIP", 7)
    monkeypatch.setattr("portraitkit.faces.warp.MAX_POINTS", 3000)
    strips, _ = retouch(pixels, mesh, lambda crop: smoothed(crop, 5), size=64)
    assert (strips - whole).abs().max() < 1e-4 and (whole - pixels).abs().max() > 0.05


def test_the_middle_of_the_face_takes_the_whole_edit(portraits, meshes):
    for name, pixels in portraits.items():
        darkened = pixels * 0.6
        result, _ = retouch(darkened, meshes[name], brighter)
        change = (result - darkened)[inside(meshes[name], pixels).expand(3, -1, -1)]
        assert change.mean().item() == pytest.approx(0.2, abs=0.002)
        assert change.std().item() < 0.01


def test_no_edit_and_no_strength_change_nothing(portraits, meshes):
    pixels, mesh = portraits["astronaut"], meshes["astronaut"]
    assert torch.equal(retouch(pixels, mesh, lambda crop: crop)[0], pixels)
    assert torch.equal(retouch(pixels, mesh, brighter, strength=0.0)[0], pixels)


def test_strength_is_linear(portraits, meshes):
    pixels, mesh = portraits["astronaut"] * 0.6, meshes["astronaut"]
    whole, half = (retouch(pixels, mesh, brighter, strength=share)[0] - pixels for share in (1.0, 0.5))
    assert torch.allclose(half * 2, whole, atol=1e-6)


@pytest.mark.parametrize("degrees", [0, 30, -75])
def test_an_edit_lands_on_the_feature_it_was_made_at(portraits, meshes, degrees):
    """A dot on the nose tip of the crop, in a picture turned by any angle, lies on the nose tip of the picture."""
    pixels, mesh = portraits["grace_hopper"], meshes["grace_hopper"]
    turn = torch.tensor(degrees).deg2rad()
    c, s, middle = turn.cos(), turn.sin(), torch.tensor([256.0, 256.0])
    square = pixels[:, :512]
    rotation = torch.tensor([[c, -s], [s, c]])
    grid = F.affine_grid(torch.cat([rotation.T, torch.zeros(2, 1)], 1)[None], [1, 3, 512, 512], align_corners=False)
    turned = F.grid_sample(square[None], grid, align_corners=False, padding_mode="border")[0].clamp(0, 1) * 0.6
    points = torch.cat([(mesh[:, :2] - middle) @ rotation.T + middle, mesh[:, 2:]], 1)

    def dot(crop):
        place = align_face(turned, points, SIZE).to_crop(points)[1, :2]
        y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
        return crop + 0.3 * torch.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / 8)

    result, _ = retouch(turned, points, dot)
    change = (result - turned).abs().sum(0)
    y, x = torch.meshgrid(torch.arange(512) + 0.5, torch.arange(512) + 0.5, indexing="ij")
    centre = torch.stack([(change * x).sum(), (change * y).sum()]) / change.sum()
    assert (centre - points[1, :2]).norm() < 0.1


@pytest.mark.parametrize(("factor", "kernel", "kept", "lost"), [(1, 3, 0.85, 0.15), (2, 3, 0.98, 0.05), (2, 5, 0.94, 0.1)])
def test_fine_detail_survives(portraits, meshes, factor, kernel, kept, lost):
    """The worst editor there is: it blurs the whole crop. What the crop was too small to show stays in the photo.

    Fine detail is what a box filter of `kernel` photo pixels takes out. A crop pixel is 2.4 photo pixels wide, 4.7 at
    twice the size, where grain stands in for the pores that enlarging cannot give. Pasting the crop would lose it.
    """
    pixels = F.interpolate(portraits["grace_hopper"][None, :, 60:380, 120:420], scale_factor=factor, mode="bicubic")[0]
    grain = torch.randn(1, *pixels.shape[1:], generator=torch.Generator().manual_seed(0))
    pixels = (pixels + (0.04 if factor > 1 else 0.0) * grain).clamp(0, 1)
    mesh = (meshes["grace_hopper"] - torch.tensor([120.0, 60.0, 0.0])) * factor
    aligned = align_face(pixels, mesh, SIZE)
    plastic = smoothed(aligned.pixels, 3)
    result = paste_edits(pixels, [face_edit(aligned, plastic, mesh, *pixels.shape[1:])])
    pasted = sample(plastic[None], aligned.inverse[None], max(pixels.shape[1:]), mode="bicubic")[0]
    middle = inside(mesh, pixels)[0]

    def detail(image):
        return (image - smoothed(image, kernel))[:, : len(middle), : middle.shape[1]][:, middle]

    before, after, replaced = detail(pixels), detail(result), detail(pasted)
    assert after.std() / before.std() > kept
    assert replaced.std() / before.std() < lost
    assert F.cosine_similarity(after.flatten(), before.flatten(), dim=0) > kept


def test_a_face_smaller_than_the_crop(portraits, meshes):
    small = F.interpolate(portraits["grace_hopper"][None], scale_factor=0.2, mode="bicubic", antialias=True)[0] * 0.6
    small, mesh = small.clamp(0, 1), meshes["grace_hopper"] * 0.2
    result, edit = retouch(small, mesh, brighter)
    assert max(edit.height, edit.width) < 50
    change = (result - small)[inside(mesh, small).expand(3, -1, -1)]
    assert change.mean().item() == pytest.approx(0.2, abs=0.002)


def test_the_mask_has_no_kink_and_no_step(meshes):
    mesh = meshes["grace_hopper"]
    oval = torch.stack([mesh[10, :2], mesh[454, :2], mesh[152, :2], mesh[234, :2]])
    mask = paste_mask(oval, 600, 512, softness=14.0)[0]
    assert mask.diff(dim=0).abs().max() < 0.15 and mask.diff(dim=1).abs().max() < 0.15
    assert mask.min() == 0 and mask.max() > 0.999


def test_two_faces_whose_masks_overlap(portraits, meshes):
    pixels, mesh = portraits["grace_hopper"] * 0.5 + 0.25, meshes["grace_hopper"]
    aligned = align_face(pixels, mesh, SIZE)
    edit = face_edit(aligned, brighter(aligned.pixels), mesh, *pixels.shape[1:])
    opposite = face_edit(aligned, (aligned.pixels - 0.2).clamp(0, 1), mesh, *pixels.shape[1:])
    single = paste_edits(pixels, [edit])
    twice = paste_edits(pixels, [edit, edit])
    middle = inside(mesh, pixels).expand(3, -1, -1)
    assert torch.allclose(twice[middle], single[middle], atol=1e-6)
    assert torch.equal(paste_edits(pixels, [edit, opposite]), paste_edits(pixels, [opposite, edit]))
    assert (paste_edits(pixels, [edit, opposite]) - pixels).abs().max() < 1e-3


def test_a_face_at_the_edge_of_the_picture(portraits, meshes):
    pixels, mesh = portraits["grace_hopper"][:, :, 260:] * 0.6, meshes["grace_hopper"] - torch.tensor([260.0, 0, 0])
    result, edit = retouch(pixels, mesh, brighter)
    assert edit.left == 0
    assert (result - pixels)[:, 200, :40].mean().item() == pytest.approx(0.2, abs=0.005)
    far = mesh - torch.tensor([2000.0, 0, 0])
    assert torch.equal(retouch(pixels, far, brighter)[0], pixels)


def test_a_face_that_reaches_beyond_its_crop(portraits, meshes):
    """With no margin the crop's border cuts the face: the edit fades out there instead of ending in a step."""
    pixels, mesh = portraits["grace_hopper"] * 0.6, meshes["grace_hopper"]
    aligned = align_face(pixels, mesh, SIZE, margin=0.0)
    edit = face_edit(aligned, brighter(aligned.pixels), mesh, *pixels.shape[1:])
    step = torch.mul(*drawn(edit)).diff(dim=1).abs().max()
    assert step < 0.05


def test_the_edit_of_a_found_face(portraits):
    pixels = portraits["astronaut"]
    mesh = face_mesh(pixels, detect_faces(pixels)[0])
    result, _ = retouch(pixels, mesh, lambda crop: smoothed(crop, 5))
    cheek = mesh[50, :2].round().long().tolist()
    patch = (slice(None), slice(cheek[1] - 6, cheek[1] + 6), slice(cheek[0] - 6, cheek[0] + 6))
    assert result[patch].std() < pixels[patch].std()
