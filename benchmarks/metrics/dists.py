"""DISTS (Ding et al., 2020) against the reference, VGG-16."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.metric import Metric, Range, Score, WeightFile
from benchmarks.nets.pyiqa_nets import LICENCE, REVISION, against_reference, empty_net, fill, fill_backbone, iqa_file

HEAD, BACKBONE = "DISTS_weights-f5e65c96.pth", "vgg16-397923af.pth"


def open_dists(files: Mapping[str, Path]) -> Score:
    net = empty_net("dists")
    fill_backbone(net, files[BACKBONE])
    fill(net, files[HEAD], missing=("stage", "mean", "std"))
    return against_reference(net)


METRIC = Metric(
    name="dists",
    title="structure and texture distance",
    direction="lower",
    range=Range(0, 1),
    reference="full",
    licence=f"{LICENCE}; DISTS: MIT",
    open=open_dists,
    weights=(
        iqa_file(HEAD, 0.02),
        WeightFile(BACKBONE, f"https://download.pytorch.org/models/{BACKBONE}", "397923af", 528),
    ),
    revision=REVISION,
    smallest=32,
)
