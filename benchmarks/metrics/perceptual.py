"""Perceptual distances to the reference: LPIPS (Zhang et al., 2018), AlexNet, version 0.1, and DISTS (Ding et al., 2020), VGG-16."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.metric import Metric, Range, Score, WeightFile
from benchmarks.nets.pyiqa_nets import LICENCE, REVISION, against_reference, empty_net, fill, fill_backbone, iqa_file


def open_net(name: str, head: str, backbone: str, elsewhere: tuple[str, ...], files: Mapping[str, Path]) -> Score:
    """pyiqa's net of a name; parameters whose names begin as in `elsewhere` are not the head's."""
    net = empty_net(name)
    fill_backbone(net, files[backbone])
    fill(net, files[head], missing=elsewhere)
    return against_reference(net)


def _metric(name: str, head: WeightFile, backbone: str, mib: float, elsewhere: tuple[str, ...], **fields: Any) -> Metric:
    digits = backbone.removesuffix(".pth").rpartition("-")[2]
    opened: Callable[[Mapping[str, Path]], Score] = partial(open_net, name, head.name, backbone, elsewhere)
    weights = (head, WeightFile(backbone, f"https://download.pytorch.org/models/{backbone}", digits, mib))
    common: dict[str, Any] = {"direction": "lower", "range": Range(0, 1), "reference": "full", "revision": REVISION, "smallest": 32}
    return Metric(name=name, open=opened, weights=weights, **common, **fields)


LPIPS = _metric(
    "lpips",
    iqa_file("LPIPS_v0.1_alex-df73285e.pth", 0.01),
    "alexnet-owt-7be5be79.pth",
    233,
    ("net.", "scaling_layer.", "lins."),
    title="perceptual distance",
    licence=f"{LICENCE}; LPIPS: BSD-2",
)
DISTS = _metric(
    "dists",
    iqa_file("DISTS_weights-f5e65c96.pth", 0.02),
    "vgg16-397923af.pth",
    528,
    ("stage", "mean", "std"),
    title="structure and texture distance",
    licence=f"{LICENCE}; DISTS: MIT",
)
