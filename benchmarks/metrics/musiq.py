"""MUSIQ (Ke et al., 2021), trained on KonIQ-10k: a transformer over three sizes of the picture."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.metric import Metric, Range, Score, WeightFile
from benchmarks.nets.fast_musiq import FastMusiq
from benchmarks.nets.pyiqa_nets import IQA_WEIGHTS, column, empty_net, fill

FILE = "musiq_koniq_ckpt-e95806b9.pth"


def open_musiq(files: Mapping[str, Path]) -> Score:
    """The scoring function."""
    net = empty_net("musiq")
    fill(net, files[FILE])
    return column(FastMusiq(net))


METRIC = Metric(
    name="musiq",
    title="quality (KonIQ)",
    direction="higher",
    range=Range(0, 100),
    reference="none",
    licence="pyiqa: PolyForm Noncommercial and NTU S-Lab",
    open=open_musiq,
    weights=(WeightFile(FILE, f"{IQA_WEIGHTS}/{FILE}", "e95806b9", 104, from_name=True),),
    revision="IQA-PyTorch-Weights, main (not pinned)",
    version=2,
    smallest=32,
)
