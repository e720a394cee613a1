import json
from math import cos, radians, sin
from pathlib import Path

import pytest
import skimage.data
import torch
import torchvision.transforms.v2.functional as TF
from torchvision.transforms import InterpolationMode

from portraitkit.errors import FaceError
from portraitkit.faces.detect import detect_faces
from portraitkit.faces.mesh import crop_from_face, crop_from_mesh, crop_matrix, face_mesh, face_meshes, require_mesh
from portraitkit.faces.warp import transform

REFERENCE = json.loads((Path(__file__).parent / "reference.json").read_text())["mesh"]


@pytest.mark.parametrize("name", REFERENCE)
def test_points_equal_mediapipes_own(portraits, name):
    known = REFERENCE[name]
    crop = crop_matrix(torch.tensor([known["centre"]]), torch.tensor([known["side"]]), torch.tensor([known["angle"]]))
    points, score = face_meshes(portraits[name][None], crop)
    expected = torch.tensor(list(known["points"].values()))
    indices = [int(index) for index in known["points"]]
    assert torch.allclose(transform(points[..., :2], crop)[0, indices], expected[:, :2], atol=2e-3)
    assert torch.allclose(points[0, indices, 2] * 192 / known["side"], expected[:, 2], atol=2e-3)
    assert score.item() > 0.99


def test_the_mesh_follows_a_turned_picture(portraits, meshes):
    pixels, angle = portraits["grace_hopper"], 25
    turned = TF.rotate(pixels, angle, interpolation=InterpolationMode.BILINEAR)
    found = face_mesh(turned, detect_faces(turned)[0])[:, :2]
    centre = torch.tensor([256.0, 300.0])
    c, s = cos(radians(angle)), sin(radians(angle))
    expected = (meshes["grace_hopper"][:, :2] - centre) @ torch.tensor([[c, s], [-s, c]]).T + centre
    unit = (expected[33] - expected[263]).norm()
    assert (found - expected).norm(dim=-1).mean() < 0.03 * unit


def test_the_mesh_is_differentiable(portraits, faces):
    pixels = portraits["astronaut"].clone().requires_grad_()
    face_mesh(pixels, faces["astronaut"])[13, 1].backward()
    x0, y0, x1, y1 = (round(value) for value in faces["astronaut"].box)
    assert pixels.grad[:, y0:y1, x0:x1].abs().sum() > 0
    assert torch.isfinite(pixels.grad).all()
    assert pixels.grad[:, 400:].abs().sum() == 0


def test_a_batch_with_known_crops(portraits, meshes):
    images = torch.stack([portraits["astronaut"], portraits["grace_hopper"][:, :512]])
    points, score = face_meshes(images, crop_from_mesh(torch.stack(list(meshes.values()))))
    assert (score > 0.99).all()
    for found, expected in zip(points, meshes.values(), strict=True):
        unit = (expected[33] - expected[263]).norm()
        assert (found - expected)[:, :2].norm(dim=-1).mean() < 0.02 * unit


def test_the_crop_is_level_and_holds_the_mesh(faces, meshes):
    for name, mesh in meshes.items():
        crop = crop_from_mesh(mesh[None])
        points = transform(mesh[None, :, :2], crop)[0]
        assert points[33, 1] == pytest.approx(points[263, 1].item(), abs=1e-3)
        low, high = points.amin(0), points.amax(0)
        assert (high - low).max() == pytest.approx(192 / 1.5, rel=1e-4)
        assert ((low + high) / 2).tolist() == pytest.approx([96, 96], abs=1e-2)
        eyes = transform(faces[name].keypoints[None, :2], crop_from_face(faces[name]))[0]
        assert eyes[0, 1] == pytest.approx(eyes[1, 1].item(), abs=1e-3)


def test_require_mesh(portraits):
    face, mesh = require_mesh(portraits["grace_hopper"], min_size=100)
    assert mesh.shape == (468, 3) and face.size > 100
    with pytest.raises(FaceError, match="no face found"):
        require_mesh(torch.zeros(3, 64, 64))
    with pytest.raises(FaceError, match="at least 400 needed"):
        require_mesh(portraits["grace_hopper"], min_size=400)


def test_a_cat_is_not_trusted():
    cat = torch.from_numpy(skimage.data.chelsea()).permute(2, 0, 1) / 255
    assert detect_faces(cat)  # the detector alone is deceived
    with pytest.raises(FaceError, match=r"^cat\.png: landmark score 0\.\d\d: at least 0\.5 needed"):
        require_mesh(cat, Path("cat.png"))
