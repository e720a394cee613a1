"""Faces: none is left out silently, in any direction; an anchor that is zoomed is refused."""

import pytest
import torch
from PIL import Image

from policies.retoucher.retouch.faces import find_faces
from portraitkit.errors import DataError, FaceError
from portraitkit.faces.mesh import require_mesh
from portraitkit.faces.portraits import bundled_portraits
from portraitkit.pictures.images import from_pil, resize, to_pil
from preference_data.people.photos import find_face, fit_retouch


@pytest.fixture(scope="module")
def portrait():
    return bundled_portraits()["astronaut"]


def test_more_than_sixteen_faces(portrait):
    """A cap on candidates had left out all after the sixteenth."""
    face = resize(portrait[:, 20:276, 100:356], (110, 110))
    grid = torch.cat([torch.cat([face] * 6, 2)] * 3, 1)
    found = find_faces(grid)
    assert len(found.meshes) == 18 and not found.skipped


def test_small_faces_beside_a_large_one(portrait):
    canvas = torch.full((3, 900, 1200), 0.5)
    canvas[:, :700, :700] = resize(portrait[:, :400, 60:460], (700, 700))
    for column in range(4):
        canvas[:, 760:860, 40 + 280 * column : 140 + 280 * column] = resize(portrait[:, 20:276, 100:356], (100, 100))
    widths = sorted(float(mesh[:, 0].amax() - mesh[:, 0].amin()) for mesh in find_faces(canvas).meshes)
    assert len(widths) == 5 and widths[3] < 100 < widths[4]


@pytest.mark.parametrize("angle", [90, 150, 180, 210, 270])
def test_a_face_in_any_direction(portrait, angle):
    turned = from_pil(to_pil(portrait).rotate(angle, expand=True))
    _, upright = require_mesh(portrait)
    _, mesh = require_mesh(turned)
    size = torch.tensor([portrait.shape[2], portrait.shape[1]]) / 2
    radians = torch.tensor(angle).deg2rad()
    turn = torch.tensor([[radians.cos(), -radians.sin()], [radians.sin(), radians.cos()]])  # counter-clockwise, y down
    expected = (upright[:, :2] - size) @ turn + torch.tensor([turned.shape[2], turned.shape[1]]) / 2
    span = (upright[33, :2] - upright[263, :2]).norm()
    assert (mesh[:, :2] - expected).norm(dim=1).mean() < 0.1 * span


def test_no_face_in_any_direction():
    with pytest.raises(FaceError, match="no face found"):
        require_mesh(torch.rand(3, 200, 200, generator=torch.Generator().manual_seed(0)))


def zoomed(pixels, factor):
    height, width = pixels.shape[1:]
    cut = (width / factor, height / factor)
    box = ((width - cut[0]) / 2, (height - cut[1]) / 2, (width + cut[0]) / 2, (height + cut[1]) / 2)
    return from_pil(to_pil(pixels).transform((width, height), Image.Transform.EXTENT, box, Image.Resampling.BICUBIC))


@pytest.mark.parametrize("factor", [0.92, 0.95, 1.05, 1.08, 1.11])
def test_a_zoomed_anchor_is_refused_with_digits_that_differ(portrait, tmp_path, factor):
    with pytest.raises(DataError, match="times as large as its photo's|is off by 0.06[0-9]+|is off by 0.[1-9]"):
        fit_retouch(zoomed(portrait, factor), find_face(portrait, tmp_path), tmp_path, "anchor")


@pytest.mark.parametrize("factor", [0.99, 1.0, 1.01])
def test_an_anchor_in_its_place_passes(portrait, tmp_path, factor):
    assert fit_retouch(zoomed(portrait, factor), find_face(portrait, tmp_path), tmp_path, "anchor").shape == portrait.shape
