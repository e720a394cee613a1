import pytest
import torch
from onnx_nets import write_arcface

from portraitkit.errors import WeightsError
from portraitkit.faces.arcface import _providers, arcface_chips, open_arcface

pytest.importorskip("onnxruntime", reason="the arcface judge is optional and runs on onnxruntime")


def test_missing_weights_say_what_to_get_and_where_to_put_it(tmp_path):
    with pytest.raises(WeightsError, match=r"no ArcFace net at .*buffalo_l.*put its w600k_r50\.onnx there") as error:
        open_arcface(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(WeightsError, match="no ArcFace net"):
        open_arcface(tmp_path / "elsewhere.onnx")


def test_the_default_place_is_insightfaces_own(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"\.insightface/models/buffalo_l: download"):
        open_arcface()


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "w600k_r50.onnx").write_bytes(b"\xff" * 1000)
    with pytest.raises(WeightsError, match="not a readable ONNX model"):
        open_arcface(tmp_path)


def test_another_net_is_refused(tmp_path):
    write_arcface(tmp_path / "other.onnx", shape=(None, 3, 192, 192))
    with pytest.raises(WeightsError, match=r"an ArcFace net maps \[batch, 3, 112, 112\]"):
        open_arcface(tmp_path / "other.onnx")


def test_pixels_arrive_as_arcface_wants_them(tmp_path, portraits, meshes):
    matrix = torch.from_numpy(write_arcface(tmp_path / "w600k_r50.onnx"))
    judge = open_arcface(tmp_path)
    images = torch.stack([portraits["astronaut"], portraits["grace_hopper"][:, :512]])
    batch = torch.stack(list(meshes.values()))
    embedding = judge.embedding(images, batch)
    assert embedding.shape == (2, 512)
    assert torch.allclose(embedding.norm(dim=-1), torch.ones(2), atol=1e-5)
    blocks = torch.nn.functional.avg_pool2d(arcface_chips(images, batch) * 2 - 1, 16).flatten(1)
    expected = torch.nn.functional.normalize(blocks @ matrix, dim=-1)
    assert torch.allclose(embedding, expected, atol=1e-4)
    assert judge.distance(embedding, embedding).abs().max() < 1e-5
    cosine = (embedding[0] * embedding[1]).sum()
    assert judge.distance(embedding[:1], embedding[1:]).item() == pytest.approx(1 - cosine.item(), abs=1e-5)


def test_chips_put_the_features_on_the_template(portraits, meshes):
    chip = arcface_chips(portraits["grace_hopper"][None], meshes["grace_hopper"][None])[0]
    assert chip.shape == (3, 112, 112)
    redness = chip[0] - chip[1]
    mouth, forehead = redness[88:97, 44:68].mean(), redness[20:30, 44:68].mean()
    assert mouth > forehead


def test_a_gpu_is_used_where_onnxruntime_has_it():
    here, cpu = ["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"]
    assert _providers("cpu", here) == cpu and _providers("cuda:1", cpu) == cpu
    assert _providers("cuda:1", here) == [("CUDAExecutionProvider", {"device_id": 1}), *cpu]
