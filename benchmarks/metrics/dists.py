"""DISTS (Ding et al., 2020) against the reference, VGG-16."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.metric import Metric, Range, Score, WeightFile
from benchmarks.nets.pyiqa_nets import IQA_WEIGHTS, against_reference, empty_net, fill, fill_backbone

HEAD, BACKBONE = "DISTS_weights-f5e65c96.pth", "vgg16-397923af.pth"


def open_dists(files: Mapping[str, Path]) -> Score:
    """The scoring function."""
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
    licence="pyiqa: PolyForm Noncommercial and NTU S-Lab; DISTS: MIT",
    open=open_dists,
    weights=(
        WeightFile(HEAD, f"{IQA_WEIGHTS}/{HEAD}", "f5e65c96", 0.02, from_name=True),
        WeightFile(BACKBONE, f"https://download.pytorch.org/models/{BACKBONE}", "397923af", 528),
    ),
    revision="IQA-PyTorch-Weights, main (not pinned)",
    smallest=32,
)
