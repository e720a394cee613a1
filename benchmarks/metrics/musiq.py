"""MUSIQ (Ke et al., 2021), a transformer over three sizes of the picture, trained on KonIQ-10k or on AVA.

The published tables seem to use the variant of AVA.
"""

from benchmarks.metric import Range
from benchmarks.nets.fast_musiq import FastMusiq
from benchmarks.nets.pyiqa_nets import iqa_file, pyiqa_metric

KONIQ = pyiqa_metric("musiq", "quality (KonIQ)", Range(0, 100), iqa_file("musiq_koniq_ckpt-e95806b9.pth", 104), faster=FastMusiq, version=2)
AVA = pyiqa_metric("musiq-ava", "aesthetics (AVA)", Range(1, 10), iqa_file("musiq_ava_ckpt-e8d3f067.pth", 104), faster=FastMusiq, version=2)
METRICS = [KONIQ, AVA]
