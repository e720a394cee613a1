"""TOPIQ (Chen et al., 2024), no reference, trained on KonIQ-10k."""

from benchmarks.metric import Range
from benchmarks.nets.fast_topiq import FastTopiq
from benchmarks.nets.pyiqa_nets import iqa_file, pyiqa_metric

METRIC = pyiqa_metric(
    "topiq_nr", "quality (KonIQ)", Range(0, 1), iqa_file("cfanet_nr_koniq_res50-9a73138b.pth", 180), faster=FastTopiq, version=2
)
