"""MANIQA (Yang et al., 2022), trained on KonIQ-10k, the mean of 20 crops of 224 px."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.metric import Metric, Range, Score, WeightFile
from benchmarks.nets.pyiqa_nets import IQA_WEIGHTS, column, empty_net, fill

FILE = "ckpt_koniq10k.pt"


def open_maniqa(files: Mapping[str, Path]) -> Score:
    """The scoring function."""
    net = empty_net("maniqa")
    fill(net, files[FILE])
    return column(net)


METRIC = Metric(
    name="maniqa",
    title="quality (KonIQ)",
    direction="higher",
    range=Range(0, 1),
    reference="none",
    licence="pyiqa: PolyForm Noncommercial and NTU S-Lab",
    open=open_maniqa,
    weights=(WeightFile(FILE, f"{IQA_WEIGHTS}/{FILE}", "", 520),),
    revision="IQA-PyTorch-Weights, main (not pinned)",
    smallest=224,
)
