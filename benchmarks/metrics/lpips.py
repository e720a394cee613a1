"""LPIPS (Zhang et al., 2018) against the reference, AlexNet, version 0.1."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.metric import Metric, Range, Score, WeightFile
from benchmarks.nets.pyiqa_nets import LICENCE, REVISION, against_reference, empty_net, fill, fill_backbone, iqa_file

HEAD, BACKBONE = "LPIPS_v0.1_alex-df73285e.pth", "alexnet-owt-7be5be79.pth"


def open_lpips(files: Mapping[str, Path]) -> Score:
    net = empty_net("lpips")
    fill_backbone(net, files[BACKBONE])
    fill(net, files[HEAD], missing=("net.", "scaling_layer.", "lins."))
    return against_reference(net)


METRIC = Metric(
    name="lpips",
    title="perceptual distance",
    direction="lower",
    range=Range(0, 1),
    reference="full",
    licence=f"{LICENCE}; LPIPS: BSD-2",
    open=open_lpips,
    weights=(
        iqa_file(HEAD, 0.01),
        WeightFile(BACKBONE, f"https://download.pytorch.org/models/{BACKBONE}", "7be5be79", 233),
    ),
    revision=REVISION,
    smallest=32,
)
