"""MUSIQ (Ke et al., 2021), trained on AVA: the published tables seem to use this variant."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.metric import Metric, Range, Score, WeightFile
from benchmarks.nets.fast_musiq import FastMusiq
from benchmarks.nets.pyiqa_nets import IQA_WEIGHTS, column, empty_net, fill

FILE = "musiq_ava_ckpt-e8d3f067.pth"


def open_musiq_ava(files: Mapping[str, Path]) -> Score:
    """The scoring function."""
    net = empty_net("musiq-ava")
    fill(net, files[FILE])
    return column(FastMusiq(net))


METRIC = Metric(
    name="musiq-ava",
    title="aesthetics (AVA)",
    direction="higher",
    range=Range(1, 10),
    reference="none",
    licence="pyiqa: PolyForm Noncommercial and NTU S-Lab",
    open=open_musiq_ava,
    weights=(WeightFile(FILE, f"{IQA_WEIGHTS}/{FILE}", "e8d3f067", 104, from_name=True),),
    revision="IQA-PyTorch-Weights, main (not pinned)",
    version=2,
    smallest=32,
)
