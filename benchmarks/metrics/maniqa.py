"""MANIQA (Yang et al., 2022), trained on KonIQ-10k, the mean of 20 crops of 224 px."""

from benchmarks.metric import Range
from benchmarks.nets.pyiqa_nets import iqa_file, pyiqa_metric

METRIC = pyiqa_metric("maniqa", "quality (KonIQ)", Range(0, 1), iqa_file("ckpt_koniq10k.pt", 520), smallest=224)
