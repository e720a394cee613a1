"""No-reference networks that pyiqa has, each filled from one file.

MANIQA (Yang et al., 2022): KonIQ-10k, the mean of 20 crops of 224 px. MUSIQ (Ke et al., 2021): a transformer over three sizes of the
picture, trained on KonIQ-10k or on AVA; the published tables seem to use AVA's. NIMA (Talebi, Milanfar, 2018): mean opinion on AVA, by an
Inception-ResNet-v2; the NIMA column of the published tables. TOPIQ (Chen et al., 2024): KonIQ-10k.
"""

from typing import Any

from benchmarks.metric import Range
from benchmarks.nets.fast_musiq import FastMusiq
from benchmarks.nets.fast_topiq import FastTopiq
from benchmarks.nets.fused import fold
from benchmarks.nets.pyiqa_nets import iqa_file, pyiqa_metric


def folded(net: Any) -> Any:
    """NIMA's net with batch normalisation folded into its convolutions."""
    fold(net.base_model)
    return net


MUSIQ_KONIQ, MUSIQ_AVA = iqa_file("musiq_koniq_ckpt-e95806b9.pth", 104), iqa_file("musiq_ava_ckpt-e8d3f067.pth", 104)
NIMA_FILE, TOPIQ_FILE = iqa_file("NIMA_InceptionV2_ava-b0c77c00.pth", 208), iqa_file("cfanet_nr_koniq_res50-9a73138b.pth", 180)

MANIQA = pyiqa_metric("maniqa", "quality (KonIQ)", Range(0, 1), iqa_file("ckpt_koniq10k.pt", 520), smallest=224)
MUSIQ = pyiqa_metric("musiq", "quality (KonIQ)", Range(0, 100), MUSIQ_KONIQ, faster=FastMusiq, version=2)
AVA = pyiqa_metric("musiq-ava", "aesthetics (AVA)", Range(1, 10), MUSIQ_AVA, faster=FastMusiq, version=2)
NIMA = pyiqa_metric("nima", "aesthetics (AVA)", Range(0, 10), NIMA_FILE, faster=folded, version=2)
TOPIQ = pyiqa_metric("topiq_nr", "quality (KonIQ)", Range(0, 1), TOPIQ_FILE, faster=FastTopiq, version=2)
