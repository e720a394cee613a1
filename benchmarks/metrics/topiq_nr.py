"""TOPIQ (Chen et al., 2024), no reference, trained on KonIQ-10k."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.metric import Metric, Range, Score, WeightFile
from benchmarks.nets.fast_topiq import FastTopiq
from benchmarks.nets.pyiqa_nets import IQA_WEIGHTS, column, empty_net, fill

FILE = "cfanet_nr_koniq_res50-9a73138b.pth"


def open_topiq_nr(files: Mapping[str, Path]) -> Score:
    """The scoring function."""
    net = empty_net("topiq_nr")
    fill(net, files[FILE])
    return column(FastTopiq(net))


METRIC = Metric(
    name="topiq_nr",
    title="quality (KonIQ)",
    direction="higher",
    range=Range(0, 1),
    reference="none",
    licence="pyiqa: PolyForm Noncommercial and NTU S-Lab",
    open=open_topiq_nr,
    weights=(WeightFile(FILE, f"{IQA_WEIGHTS}/{FILE}", "9a73138b", 180, from_name=True),),
    revision="IQA-PyTorch-Weights, main (not pinned)",
    version=2,
    smallest=32,
)
