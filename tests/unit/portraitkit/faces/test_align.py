import pytest

from portraitkit.errors import ConfigError
from portraitkit.faces.align import align_face
from portraitkit.faces.detect import detect_faces
from portraitkit.faces.mesh import face_mesh
from portraitkit.faces.warp import sample


@pytest.mark.parametrize("size", [128, 256])
def test_the_face_stands_where_it_should(portraits, meshes, size):
    for name, pixels in portraits.items():
        aligned = align_face(pixels, meshes[name], size)
        assert aligned.pixels.shape == (3, size, size)
        assert aligned.pixels.min() >= 0 and aligned.pixels.max() <= 1
        points = aligned.to_crop(meshes[name]) / size
        eyes, top, chin = points[[33, 263], :2], points[10, 1], points[152, 1]
        assert (eyes[0, 1] - eyes[1, 1]).abs() < 0.02
        assert eyes[:, 0].mean().item() == pytest.approx(0.5, abs=0.02)
        assert (chin - top).item() == pytest.approx(0.7, abs=0.05)
        assert top.item() == pytest.approx(0.18, abs=0.04)


def test_the_mesh_of_the_crop_is_the_mapped_mesh(portraits, meshes):
    aligned = align_face(portraits["grace_hopper"], meshes["grace_hopper"], 384)
    found = face_mesh(aligned.pixels, detect_faces(aligned.pixels)[0])
    expected = aligned.to_crop(meshes["grace_hopper"])
    assert (found - expected)[:, :2].norm(dim=-1).mean() < 4


def test_the_way_back(portraits, meshes):
    mesh = meshes["astronaut"]
    aligned = align_face(portraits["astronaut"], mesh, 512)
    x0, y0, x1, y1 = 180, 80, 270, 170
    back = sample(aligned.pixels[None], aligned.inverse[None], 512)[0]
    difference = (back - portraits["astronaut"])[:, y0:y1, x0:x1].abs().mean()
    assert difference < 0.015


def test_margin(portraits, meshes):
    mesh = meshes["astronaut"]
    spans = []
    for margin in (0.1, 0.3, 0.5):
        points = align_face(portraits["astronaut"], mesh, 128, margin=margin).to_crop(mesh)
        spans.append((points[152, 1] - points[10, 1]).item())
    assert spans[0] / spans[1] == pytest.approx(0.9 / 0.7, rel=1e-4)
    assert spans[2] / spans[1] == pytest.approx(0.5 / 0.7, rel=1e-4)


def test_gradient_reaches_the_picture(portraits, meshes):
    pixels = portraits["astronaut"].clone().requires_grad_()
    align_face(pixels, meshes["astronaut"], 32).pixels.sum().backward()
    assert pixels.grad[:, 124, 223].min() > 0


@pytest.mark.parametrize(("size", "margin", "message"), [(128, 0.95, "margin 0.95"), (8, 0.3, "size 8")])
def test_impossible_values_are_refused(portraits, meshes, size, margin, message):
    with pytest.raises(ConfigError, match=message):
        align_face(portraits["astronaut"], meshes["astronaut"], size, margin=margin)
