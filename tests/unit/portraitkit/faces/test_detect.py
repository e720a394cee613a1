import pytest
import torch
import torch.nn.functional as F

from portraitkit.faces.detect import KEYPOINTS, detect_faces


def _shrunk(pixels, size, face):
    factor = size / face.size
    return F.interpolate(pixels[None], scale_factor=factor, mode="bilinear", antialias=True)[0]


def test_the_portraits_hold_one_face_each(portraits):
    (astronaut,) = detect_faces(portraits["astronaut"])
    (hopper,) = detect_faces(portraits["grace_hopper"])
    assert astronaut.box == pytest.approx((171, 75, 276, 180), abs=6)
    assert hopper.box == pytest.approx((170, 139, 363, 332), abs=12)
    assert 0.65 < hopper.score <= 1


def test_keypoints_lie_on_the_features(faces, meshes):
    expected = {"right_eye": (33, 133), "left_eye": (263, 362), "nose": (4,), "mouth": (13, 14)}
    for name, face in faces.items():
        unit = (meshes[name][33] - meshes[name][263])[:2].norm()
        for part, indices in expected.items():
            place = meshes[name][list(indices), :2].mean(0)
            assert (face.keypoints[KEYPOINTS.index(part)] - place).norm() < 0.12 * unit, (name, part)


@pytest.mark.parametrize("name", ["astronaut", "grace_hopper"])
def test_a_small_face_in_a_large_picture(portraits, faces, name):
    small = _shrunk(portraits[name], 24, faces[name])
    canvas = torch.full((3, 1024, 1024), 0.5)
    canvas[:, 300 : 300 + small.shape[1], 200 : 200 + small.shape[2]] = small
    (face,) = detect_faces(canvas)
    factor = 24 / faces[name].size
    centre = torch.tensor(face.box).view(2, 2).mean(0) - torch.tensor([200.0, 300.0])
    assert face.size == pytest.approx(24, rel=0.2)
    assert (centre - torch.tensor(faces[name].box).view(2, 2).mean(0) * factor).norm() < 4


@pytest.mark.parametrize("name", ["astronaut", "grace_hopper"])
def test_a_face_that_fills_the_picture(portraits, faces, name):
    x0, y0, x1, y1 = (round(value) for value in faces[name].box)
    cut = (x1 - x0) // 10
    crop = portraits[name][:, y0 + cut : y1 - cut, x0 + cut : x1 - cut]
    (face,) = detect_faces(crop)
    assert face.size == pytest.approx(faces[name].size, rel=0.2)


def test_a_huge_picture_is_reduced_first(portraits, faces):
    large = F.interpolate(portraits["astronaut"][None], (2048, 2048), mode="bilinear")[0]
    (face,) = detect_faces(large)
    assert face.box == pytest.approx([value * 4 for value in faces["astronaut"].box], abs=20)


def test_largest_first(portraits):
    both = torch.cat([portraits["astronaut"], portraits["grace_hopper"][:, :512]], 2)
    first, second = detect_faces(both)
    assert first.box[0] > 512 > second.box[2]
    assert first.size > 1.5 * second.size


@pytest.mark.parametrize("shape", [(3, 300, 200), (3, 4, 4), (3, 1, 400)])
def test_nothing_is_found_where_nothing_is(shape):
    assert detect_faces(torch.zeros(shape)) == []
    assert detect_faces(torch.rand(shape, generator=torch.Generator().manual_seed(0))) == []
