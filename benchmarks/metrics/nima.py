"""NIMA (Talebi, Milanfar, 2018): mean opinion on AVA, by an Inception-ResNet-v2; the NIMA column of the published tables."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.metric import Metric, Range, Score, WeightFile
from benchmarks.nets.fused import fold
from benchmarks.nets.pyiqa_nets import IQA_WEIGHTS, column, empty_net, fill

FILE = "NIMA_InceptionV2_ava-b0c77c00.pth"


def open_nima(files: Mapping[str, Path]) -> Score:
    """The scoring function."""
    net = empty_net("nima")
    fill(net, files[FILE])
    fold(net.base_model)  # pyright: ignore[reportArgumentType]
    return column(net)


METRIC = Metric(
    name="nima",
    title="aesthetics (AVA)",
    direction="higher",
    range=Range(0, 10),
    reference="none",
    licence="pyiqa: PolyForm Noncommercial and NTU S-Lab",
    open=open_nima,
    weights=(WeightFile(FILE, f"{IQA_WEIGHTS}/{FILE}", "b0c77c00", 208, from_name=True),),
    revision="IQA-PyTorch-Weights, main (not pinned)",
    version=2,
    smallest=32,
)
