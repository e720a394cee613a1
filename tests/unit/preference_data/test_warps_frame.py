"""The face's own frame, fields in it, and their inverse."""

import pytest
import torch

from preference_data.people import synthetic, warps
from preference_data.people.warps import FaceFrame, Moves, Push, polyline, smooth_step


@pytest.fixture(scope="module")
def mesh():
    return synthetic.make_person("train", torch.Generator().manual_seed(0)).mesh


def test_the_frame_has_the_eye_corners_half_a_unit_from_its_origin(mesh):
    face = FaceFrame.of(mesh)
    torch.testing.assert_close(face.points[33], torch.tensor([-0.5, 0.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(face.points[263], torch.tensor([0.5, 0.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(face.to_pixels(face.to_frame(mesh)), mesh)
    assert face.points[152, 1] > 0.8


def test_size_roll_and_place_do_not_change_what_is_in_the_frame(mesh):
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    torch.testing.assert_close(FaceFrame.of(3 * mesh @ turn.T + 100).points, FaceFrame.of(mesh).points, atol=1e-4, rtol=0)


def test_a_push_moves_its_landmark_and_its_mirror(mesh):
    face = FaceFrame.of(mesh)
    moves = Moves.of(face, [(Push(61, -0.06, -0.08, 0.1, 0.1), 0.5)])
    shift = moves(face.points)
    assert shift[61, 0] == pytest.approx(-0.03, abs=0.003) and shift[291, 0] == pytest.approx(0.03, abs=0.003)
    assert shift[61, 1] == pytest.approx(-0.04, abs=0.003) and shift[10].abs().max() < 1e-3
    central = Moves.of(face, [(Push(17, 0.0, -0.05, 0.1, 0.1), 1.0)])
    assert len(central.centres) == 1


def test_undo_is_the_inverse_of_the_field(mesh):
    face = FaceFrame.of(mesh)
    moves = Moves.of(face, [(Push(61, -0.085, -0.085, 0.15, 0.13), 1.0), (Push(107, 0.0, -0.085, 0.10, 0.11), 1.0)])
    at = face.to_frame(warps.pixel_grid(128, 128))
    before = moves.undo(at)
    assert (before + moves(before) - at).abs().max() * face.unit < 0.3  # pixels
    nothing = Moves.of(face, [])
    assert nothing.undo(at) is at and not nothing(at).any()


def test_polyline_and_step():
    line = torch.tensor([[1.0, 3.0], [0.0, 1.0]])  # in any order
    assert polyline(line, torch.tensor([-5.0, 0.0, 0.5, 1.0, 9.0])).tolist() == [1, 1, 2, 3, 3]
    assert smooth_step(torch.tensor([-1.0, 0.0, 1.0, 2.0, 3.0]), 0.0, 2.0).tolist() == [0, 0, 0.5, 1, 1]
