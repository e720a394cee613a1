"""Metrics on a CUDA device that is none (`pretend_cuda`): each computes where its pictures are, and its values are the CPU's."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx_nets import write_arcface
from pretend_cuda import PLACES, pretend_cuda
from pyiqa_weights import head_and_backbone, resnet_clip, save, vit_clip, write_forests, write_inception

from benchmarks import suite
from benchmarks.inputs import match, read_folder
from benchmarks.metric import Metric, Pictures
from benchmarks.metrics import built_in_metrics, laion_aes, load_metrics
from benchmarks.nets.pyiqa_nets import empty_net, quiet
from benchmarks.store import Store
from benchmarks.suite import Suite
from benchmarks.weight_files import Digests, find_weights

BY_WEIGHTS = ("nima", "musiq", "musiq-ava", "topiq_nr", "topiq_nr-face", "arcface", "clipiqa", "laion_aes", "nrqm", "lpips", "fid")
SLOW = ("maniqa", "dists")
AS = {"kid": "fid"}  # one net, and distances in numbers
SMALL = {"nrqm": 96, "dists": 128}  # pixels a side, where the whole pictures take long
PLAIN = [name for name, metric in built_in_metrics().items() if not [w for w in metric.weights if not w.optional]]


@pytest.fixture(scope="module")
def pictures(portrait) -> Pictures:
    """Whose faces are found once for all metrics."""
    pixels = portrait[..., 20:276, 100:356]
    return Pictures(torch.cat([pixels, pixels * 0.8]), pixels.repeat(2, 1, 1, 1), (pixels * 0.95).repeat(2, 1, 1, 1), ("a", "b"))


@pytest.fixture(scope="module")
def moved() -> dict[Any, Pictures]:
    """The pictures on the device of each place, once they are there."""
    return {}


def state_of(name: str) -> dict[str, torch.Tensor]:
    """Random weights of the net that pyiqa has."""
    torch.manual_seed(0)
    return empty_net({"topiq_nr-face": "topiq_nr"}.get(name, name)).state_dict()


def weights_of(name: str, folder: Path) -> dict[str, Path]:
    """Files of random weights."""
    files = [wanted.name for wanted in built_in_metrics()[name].weights if not wanted.optional]
    if not files:
        return {}
    if name == "arcface":
        write_arcface(folder / files[0])
        return {files[0]: folder / files[0]}
    with quiet():
        pytest.importorskip("pyiqa", exc_type=ImportError)
    if name in ("nrqm", "fid", "kid"):
        (write_forests if name == "nrqm" else write_inception)(folder / files[0])
        return {files[0]: folder / files[0]}
    states = {
        "clipiqa": lambda: [resnet_clip().state_dict()],
        "laion_aes": lambda: [laion_aes.Head(768).state_dict(), vit_clip().state_dict()],
        "lpips": lambda: head_and_backbone(empty_net(name)),
        "dists": lambda: head_and_backbone(empty_net(name)),
    }.get(name, lambda: [state_of(name)])()
    return {file: save(folder / file, state) for file, state in zip(files, states, strict=True)}


@pytest.mark.parametrize("name", [*PLAIN, *BY_WEIGHTS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
@pytest.mark.parametrize(("place", "times"), PLACES)
@torch.no_grad()
def test_a_metric_on_the_device_is_the_cpus(name, place, times, tmp_path, pictures, moved):
    metric, files = built_in_metrics()[name], weights_of(name, tmp_path)
    if side := SMALL.get(name):
        parts = (part[..., 100 : 100 + side, 100 : 100 + side] for part in (pictures.pixels, pictures.pixels, pictures.reference))
        moved, pictures = {}, Pictures(*parts)
    expected = metric.open(files)(pictures)
    with place():
        if place not in moved:
            moved[place] = pictures.to("cuda")
        found = metric.open(files)(moved[place]).cpu()
    near = {"rtol": 1e-3 * times, "atol": 1e-4 * times}
    assert torch.allclose(found.double(), expected.double(), **near, equal_nan=True) and not found.isnan().all()


def test_every_metric_is_run():
    metrics = built_in_metrics()
    assert set(metrics) == {*PLAIN, *BY_WEIGHTS, *SLOW, *AS}
    assert all(metrics[name].open is metrics[other].open for name, other in AS.items())


class InThisThread(ThreadPoolExecutor):
    """What is pretended is so in one thread alone."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future:
        done: Future = Future()
        done.set_result(fn(*args, **kwargs))
        return done


@contextmanager
def in_this_thread() -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """As the suite's own for a GPU."""
    yield InThisThread(1), 1


def seeing(metric: Metric, seen: list[str]) -> Metric:
    """The metric, which notes where its pictures are."""

    def score(pictures: Pictures) -> torch.Tensor:
        seen.append(pictures.pixels.device.type)
        return metric.open({})(pictures)

    return replace(metric, open=lambda files: score)


def test_the_suite_measures_on_the_device_and_keeps_its_values_apart(folders, monkeypatch):
    monkeypatch.setattr(suite, "one_at_a_time", in_this_thread)
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # which what is pretended does not know
    parts = {name: read_folder(path, path) for name, path in folders.items()}
    inputs = match({name: parts[name] for name in ("photos", "soft")}, parts["photos"], parts["photos"])
    chosen = [(metric, find_weights(metric, [Path("/nowhere")], Digests())) for metric in load_metrics(("piqe", "psnr"))]
    with Store(None) as store:
        here = Suite(chosen, store, Digests()).run(inputs)
        seen: list[str] = []
        with pretend_cuda():
            there = Suite([(seeing(metric, seen), weights) for metric, weights in chosen], store, Digests(), device="cuda").run(inputs)
    assert seen and set(seen) == {"cuda"}, "pictures that stay on the CPU have the same values, and are slow"
    assert here.computed == there.computed == 12
    assert all(torch.allclose(here.values[name], there.values[name], rtol=1e-4) for name in ("piqe", "psnr"))
