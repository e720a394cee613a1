"""NIMA (Talebi, Milanfar, 2018): mean opinion on AVA, by an Inception-ResNet-v2; the NIMA column of the published tables."""

from typing import Any

from benchmarks.metric import Range
from benchmarks.nets.fused import fold
from benchmarks.nets.pyiqa_nets import iqa_file, pyiqa_metric


def folded(net: Any) -> Any:
    """The net with batch normalisation folded into its convolutions."""
    fold(net.base_model)
    return net


METRIC = pyiqa_metric(
    "nima", "aesthetics (AVA)", Range(0, 10), iqa_file("NIMA_InceptionV2_ava-b0c77c00.pth", 208), faster=folded, version=2
)
