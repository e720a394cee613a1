import math

import pytest
import torch

from portraitkit.faces.warp import invert, sample, similarity, transform


def test_similarity_is_recovered_exactly():
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(4, 7, 2, generator=generator)
    angle, scale = torch.tensor([0.0, 1.0, -2.0, 3.1]), torch.tensor([1.0, 0.1, 3.0, 7.0])
    c, s = scale * angle.cos(), scale * angle.sin()
    matrix = torch.stack([torch.stack([c, -s, c * 0 + 5], -1), torch.stack([s, c, c * 0 - 2], -1)], -2)
    found = similarity(source, transform(source, matrix))
    assert torch.allclose(found, matrix, atol=1e-4)
    assert torch.allclose(transform(transform(source, found), invert(found)), source, atol=1e-4)


def test_similarity_is_the_least_squares_fit():
    generator = torch.Generator().manual_seed(1)
    source, target = torch.randn(1, 9, 2, generator=generator), torch.randn(1, 9, 2, generator=generator)
    x, y = source[0].T
    one, zero = torch.ones(9), torch.zeros(9)
    system = torch.cat([torch.stack([x, -y, one, zero], 1), torch.stack([y, x, zero, one], 1)])
    a, b, tx, ty = torch.linalg.lstsq(system, target[0].T.reshape(-1)).solution.tolist()
    assert torch.allclose(similarity(source, target)[0], torch.tensor([[a, -b, tx], [b, a, ty]]), atol=1e-5)


def test_the_identity_returns_the_picture():
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    matrix = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])
    assert torch.allclose(sample(picture, matrix, 8), picture, atol=1e-5)
    assert torch.allclose(sample(picture, matrix, 8, mode="bicubic"), picture, atol=1e-5)


def test_shrinking_does_not_alias():
    board = ((torch.arange(64)[:, None] + torch.arange(64)[None]) % 2).float().expand(1, 3, 64, 64)
    small = sample(board, torch.tensor([[[0.25, 0, 0], [0, 0.25, 0]]]), 16)
    assert torch.allclose(small, torch.full_like(small, 0.5), atol=1e-5)


def test_outside_the_picture():
    picture = torch.ones(1, 3, 4, 4)
    away = torch.tensor([[[1.0, 0, 50], [0, 1, 0]]])
    assert sample(picture, away, 4).min() == 1
    assert sample(picture, away, 4, outside="zeros").max() == 0


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("outside", ["border", "zeros"])
def test_bytes_are_cut_as_floats_and_a_large_picture_only_where_it_is_seen(monkeypatch, outside, mode):
    picture = (torch.rand(1, 3, 90, 120, generator=torch.Generator().manual_seed(0)) * 255).byte()
    for scale, turn, across in ((0.08, 0.0, -30), (0.4, 0.7, 10), (2.0, -0.3, 60), (1.0, 0.0, 400)):
        c, s = scale * math.cos(turn), scale * math.sin(turn)
        matrix = torch.tensor([[[c, s, -across * scale], [-s, c, -20 * scale]]])
        whole = sample(picture.float() / 255, matrix, 32, outside=outside, mode=mode)
        assert torch.equal(sample(picture, matrix, 32, outside=outside, mode=mode), whole)
        with monkeypatch.context() as patch:
            patch.setattr("portraitkit.faces.warp.WHOLE", 16)
            patch.setattr("portraitkit.faces.warp.MAX_POINTS", 2**9)
            assert torch.allclose(sample(picture, matrix, 32, outside=outside, mode=mode), whole, atol=1e-4)
