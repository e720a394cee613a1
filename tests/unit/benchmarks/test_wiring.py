"""Metrics with weights: random weights of the real architectures in a file; our value against pyiqa's own on the same file.

The values mean nothing and are never shown; what is tested is that building, loading, preprocessing and batching are right.
"""

from functools import partial
from pathlib import Path

import pytest
import torch
from pyiqa_weights import head_and_backbone, resnet_clip, save
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.metric import Metric, Pictures
from benchmarks.metrics import built_in_metrics
from benchmarks.nets import pyiqa_nets
from benchmarks.nets.pyiqa_nets import empty_net, fill, no_downloads, quiet
from benchmarks.weight_files import Digests, find_weights
from portraitkit.errors import WeightsError

BATCH = 2


@pytest.fixture(scope="module", autouse=True)
def needs_pyiqa():
    with quiet():
        pytest.importorskip("pyiqa", exc_type=ImportError)


def theirs(name: str, state: dict[str, Tensor] | None, *pixels: Tensor, **options) -> Tensor:
    """pyiqa's metric as its users call it, with given weights."""
    from pyiqa.models.inference_model import InferenceModel

    with quiet(), no_downloads():
        model = InferenceModel(name, device="cpu", pretrained=False, **options)
    if state is not None:
        model.net.load_state_dict(state)
    with quiet():
        return torch.cat([model(*(part[row : row + 1] for part in pixels)).flatten() for row in range(len(pixels[0]))])


def ours(metric: Metric, folder: Path, batch: Pictures) -> Tensor:
    found = find_weights(metric, [folder], Digests())
    assert any("not on record" in note for note in found.notes)
    with torch.inference_mode():
        return metric.open(found.files)(batch).float()


def write(metric: Metric, folder: Path, state: dict[str, Tensor]) -> None:
    save(folder / metric.weights[0].name, state)


@pytest.fixture
def batch(portrait) -> Tensor:
    return torch.cat([portrait[..., 20:276, 100:356], portrait[..., 100:356, 200:456].flip(-1)]).contiguous()


def scattered(net: torch.nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under which values differ between pictures: biases and batch statistics are drawn too."""
    generator = torch.Generator().manual_seed(seed)
    state = net.state_dict()
    for name, value in state.items():
        if name.endswith("running_var"):
            state[name] = 0.5 + torch.rand(value.shape, generator=generator)
        elif name.endswith(("bias", "running_mean")):
            state[name] = 0.1 * torch.randn(value.shape, generator=generator)
    return state


NETS = [
    "nima",
    "musiq",
    "musiq-ava",
    "topiq_nr",
    pytest.param("maniqa", marks=pytest.mark.slow),  # with two crops of a picture in place of twenty
]


@pytest.mark.parametrize("name", NETS)
def test_the_value_is_pyiqas(name, tmp_path, batch, monkeypatch):
    metric = built_in_metrics()[name]
    net = empty_net(name)
    state = scattered(net)
    write(metric, tmp_path, state)
    options = {"musiq-ava": {"num_class": 10}, "maniqa": {"test_sample": 2}}.get(name, {})
    if name == "maniqa":
        monkeypatch.setattr(pyiqa_nets, "empty_net", partial(empty_net, test_sample=2))
    expected = theirs(name, state, batch, **options)
    assert expected[0] != expected[1]
    torch.testing.assert_close(ours(metric, tmp_path, Pictures(batch)), expected, atol=1e-5, rtol=1e-6)


def test_clipiqa_is_pyiqas(tmp_path, batch, monkeypatch):
    with quiet():
        from pyiqa.archs import clipiqa_arch

    clip = resnet_clip()
    metric = built_in_metrics()["clipiqa"]
    write(metric, tmp_path, clip.state_dict())
    with monkeypatch.context() as patched:
        patched.setattr(clipiqa_arch, "load", lambda *_: clip)
        expected = theirs("clipiqa", None, batch)
    values = torch.cat([ours(metric, tmp_path, Pictures(batch[row : row + 1])) for row in range(BATCH)])
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["lpips", "dists"])
def test_reference_metrics_are_pyiqas(name, tmp_path, batch):
    """Backbone and head lie in two files, as they are published. Of 128 px: dists takes long."""
    batch, metric = batch[..., 64:192, 64:192].contiguous(), built_in_metrics()[name]
    net = empty_net(name)
    head, backbone = head_and_backbone(net)
    torch.save(head, tmp_path / metric.weights[0].name)
    torch.save(backbone, tmp_path / metric.weights[1].name)
    found = {wanted.name: tmp_path / wanted.name for wanted in metric.weights}
    state = net.state_dict() | head | {key.replace("lin", "lins.", 1): value for key, value in head.items() if key.startswith("lin")}
    expected = theirs(name, state, batch, batch.flip(0))
    with torch.inference_mode():
        value = metric.open(found)(Pictures(batch, reference=batch.flip(0)))
    torch.testing.assert_close(value, expected, atol=1e-5, rtol=0)
    assert expected.min() > 0


def test_the_face_variant_looks_at_the_aligned_face(tmp_path, portrait):
    metric = built_in_metrics()["topiq_nr-face"]
    write(metric, tmp_path, scattered(empty_net("topiq_nr")))
    blank = torch.full_like(portrait, 0.5)
    values = ours(metric, tmp_path, Pictures(torch.cat([portrait, blank])))
    assert values[0].isfinite() and values[1].isnan()


def test_a_file_of_another_net_is_refused(tmp_path):
    net = empty_net("musiq")
    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="of another net"):
        fill(net, path)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    state.pop("head.bias")
    save_file(state, path)
    with pytest.raises(WeightsError, match="lacks head.bias"):
        fill(net, path)


def test_building_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    empty_net("musiq")
    assert torch.equal(before, torch.get_rng_state())
