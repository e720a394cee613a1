"""Action units: each moves what its definition says, the face mesh net sees it, nothing else changes."""

import pytest
import torch

from portraitkit.faces import portraits
from portraitkit.faces.detect import detect_faces
from portraitkit.faces.mesh import crop_from_mesh, face_mesh, face_meshes
from preference_data.people import synthetic
from preference_data.people.expressions import UNITS, calm_stage, perform
from preference_data.people.warps import FaceFrame


def height(*points):
    return lambda p: -p[list(points), 1].mean()


def eyes_open(p):
    return ((p[145] - p[159]) + (p[374] - p[386]))[1] / 2


MEASURES = {
    1: height(107, 336),
    2: height(63, 293),
    4: lambda p: -height(55, 285)(p),
    5: eyes_open,
    6: height(50, 280),
    7: lambda p: -eyes_open(p),
    9: height(129, 358),
    12: height(61, 291),
    15: lambda p: -height(61, 291)(p),
    17: height(17),
    20: lambda p: p[291, 0] - p[61, 0],
    25: lambda p: p[14, 1] - p[13, 1],
    26: lambda p: p[152, 1],
    43: lambda p: -eyes_open(p),
}
UNTRACKED = {6}
"""The net's cheek landmarks do not follow the cheeks."""


@pytest.fixture(scope="module")
def people():
    faces = calm_stage()
    drawn = [
        synthetic.make_person(split, torch.Generator().manual_seed(seed), size=128, faces=faces)
        for split, seed in (("train", 2), ("train", 1), ("held_out", 1))
    ]
    return [(person.clean, person.mesh) for person in drawn]


def seen(photo, mesh):
    """The landmarks that the net sees, in the face's frame."""
    return FaceFrame.of(face_meshes(photo[None], crop_from_mesh(mesh[None]))[0][0, :, :2]).points


@pytest.mark.parametrize("unit", UNITS)
def test_each_unit_moves_its_landmarks_more_the_stronger_it_is(people, unit):
    for photo, mesh in people:
        values = []
        for intensity in (0.0, 0.4, 0.7, 1.0):
            out, moved = perform(photo, mesh, {unit: intensity})
            assert out.shape == photo.shape and ((out >= 0) & (out <= 1)).all()
            values.append(float(MEASURES[unit](FaceFrame.of(moved).points)))
        assert values == sorted(values) and values[-1] - values[0] > 0.03


@pytest.mark.parametrize("unit", sorted(UNITS.keys() - UNTRACKED))
def test_the_mesh_net_sees_each_unit_in_the_picture(people, unit):
    for photo, mesh in people:
        out, _ = perform(photo, mesh, {unit: 0.65})
        assert MEASURES[unit](seen(out, mesh)) > MEASURES[unit](seen(photo, mesh)) + 0.002


def test_raised_cheeks_narrow_the_eyes_and_make_crows_feet(people):
    """The net does not see AU6: it is told by the returned mesh and by the skin beside the eyes."""
    for photo, mesh in people:
        out, moved = perform(photo, mesh, {6: 1.0})
        assert eyes_open(FaceFrame.of(moved).points) < 0.75 * eyes_open(FaceFrame.of(mesh).points)
        outwards = 0.1 * (mesh[33] - mesh[263])
        for corner in (mesh[33] + outwards, mesh[263] - outwards):
            x, y = corner.long().tolist()
            patch = (slice(None), slice(y - 4, y + 5), slice(x - 3, x + 4))
            assert (out[patch] - photo[patch]).abs().max() > 0.08


def test_no_unit_changes_nothing(people):
    photo, mesh = people[0]
    for units in ({}, {12: 0.0}):
        out, moved = perform(photo, mesh, units)
        assert out is photo and moved is mesh


@pytest.mark.parametrize("units", [{3: 0.5}, {12: 1.1}, {12: -0.1}, {12: float("nan")}])
def test_what_is_not_rendered_is_refused(people, units):
    with pytest.raises(ValueError, match="AU"):
        perform(*people[0], units)


def test_upper_units_leave_the_mouth_alone_and_lower_ones_the_eyes(people):
    for photo, mesh in people:
        x, y = mesh[[4, 152]].mean(0).long().tolist()  # about the mouth
        for unit in (1, 2, 4, 5, 7, 43):
            change = (perform(photo, mesh, {unit: 1.0})[0] - photo).abs()
            assert change[:, y - 8 : y + 8, x - 12 : x + 12].max() < 0.02, unit
        top = int(mesh[[33, 263, 145, 374], 1].amax()) + 2
        for unit in (12, 15, 17, 20, 25, 26):
            change = (perform(photo, mesh, {unit: 1.0})[0] - photo).abs()
            assert change[:, :top].mean() < 0.01 < change[:, top:].amax(), unit


def test_eyes_close_and_are_covered_with_skin(people):
    for photo, mesh in people:
        out, moved = perform(photo, mesh, {43: 1.0})
        assert eyes_open(FaceFrame.of(moved).points) < 0.1 * eyes_open(FaceFrame.of(mesh).points)
        x, y = mesh[[159, 145]].mean(0).long().tolist()
        lid = out[:, y - 2 : y, x - 1 : x + 2].mean()
        assert lid > photo[:, y - 2 : y + 2, x - 1 : x + 2].mean() + 0.05  # brighter than the pupil was


def test_an_open_mouth_is_dark_inside_and_shows_upper_teeth(people):
    for photo, mesh in people:
        out, moved = perform(photo, mesh, {25: 1.0, 26: 1.0})
        x, top, bottom = int(moved[13, 0]), float(moved[13, 1]), float(moved[14, 1])
        column = out[:, int(top) : int(bottom) + 1, x - 1 : x + 2].mean((0, 2))
        assert bottom - top > 8
        assert column.min() < 0.25 and column[: len(column) // 2].max() > column.min() + 0.2


def test_brows_are_drawn_together_and_raised_by_1_and_4(people):
    for _, mesh in people:
        blank = torch.full((3, 128, 128), 0.5)
        before, after = FaceFrame.of(mesh).points, FaceFrame.of(perform(blank, mesh, {1: 1.0, 4: 1.0})[1]).points
        assert after[285, 0] - after[55, 0] < before[285, 0] - before[55, 0] - 0.04
        assert after[107, 1] < before[107, 1] - 0.02


def test_the_upper_lid_is_up_where_5_and_7_act_together(people):
    for photo, mesh in people:
        _, both = perform(photo, mesh, {5: 1.0, 7: 1.0})
        _, alone = perform(photo, mesh, {5: 1.0})
        before, both, alone = (FaceFrame.of(m).points for m in (mesh, both, alone))
        assert both[159, 1] == pytest.approx(float(alone[159, 1]), abs=1e-3) and both[159, 1] < before[159, 1]
        assert both[145, 1] < alone[145, 1] - 0.01


def test_a_turned_picture_gives_the_turned_expression(people):
    photo, mesh = people[0]
    units = {1: 0.8, 5: 0.7, 12: 0.9, 25: 1.0}
    turned = torch.stack([128 - mesh[:, 1], mesh[:, 0]], 1)  # a quarter, clockwise
    out, moved = perform(photo, mesh, units)
    other, other_moved = perform(torch.rot90(photo, -1, (1, 2)), turned, units)
    assert (torch.rot90(out, -1, (1, 2)) - other).abs().mean() < 1e-3
    torch.testing.assert_close(torch.stack([128 - moved[:, 1], moved[:, 0]], 1), other_moved, atol=0.01, rtol=0)


def test_far_from_the_face_not_a_bit_changes_and_depth_is_kept():
    photo = portraits.bundled_portraits()["astronaut"]
    mesh = face_mesh(photo, detect_faces(photo)[0]).detach()
    out, moved = perform(photo, mesh, {12: 1.0, 26: 1.0, 43: 0.5})
    assert torch.equal(out[:, 300:], photo[:, 300:]) and not torch.equal(out, photo)
    assert moved.shape == (468, 3) and torch.equal(moved[:, 2], mesh[:, 2])
    aside = mesh.clone()
    aside[:, :2] += 5000  # a face outside the picture
    assert perform(photo, aside, {12: 1.0})[0] is photo


def test_faces_at_rest_have_closed_lips_and_no_smile():
    images, meshes = calm_stage()
    smiling = FaceFrame.of(synthetic.stage()[1][0]).points
    for image, mesh in zip(images, meshes, strict=True):
        own, net = FaceFrame.of(mesh).points, seen(image, mesh)
        assert own[14, 1] - own[13, 1] < 0.02 and net[14, 1] - net[13, 1] < 0.35 * (smiling[14, 1] - smiling[13, 1])
        assert (own - net)[[61, 291, 13, 17, 33, 263, 105, 334, 152]].norm(dim=1).mean() < 0.05
    calm = FaceFrame.of(meshes[0]).points
    assert MEASURES[12](calm) < MEASURES[12](smiling) - 0.03 and MEASURES[20](calm) < MEASURES[20](smiling) - 0.08


def test_hoppers_glasses_are_gone_and_the_rest_is_hers():
    before, after = synthetic.stage()[0][1], calm_stage()[0][1]
    assert torch.equal(before[:, 125:], after[:, 125:]) and torch.equal(before[:, :35], after[:, :35])
    frame = before[:, 68:72, 76:82]  # the bridge's dark corner
    assert after[:, 68:72, 76:82].mean() > frame.mean()
