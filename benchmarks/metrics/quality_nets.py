"""The nets that pyiqa has, filled from files.

Without a reference: CLIP-IQA (Wang et al., 2023): how much nearer a picture is to "Good image" than to "bad image", and four more such
pairs, in CLIP. MANIQA (Yang et al., 2022): KonIQ-10k, the mean of 20 crops of 224 px. MUSIQ (Ke et al., 2021): a transformer over three
sizes of the picture, trained on KonIQ-10k or on AVA; the published tables seem to use AVA's. NIMA (Talebi, Milanfar, 2018): mean opinion on
AVA, by an Inception-ResNet-v2; the NIMA column of the published tables. NRQM (Ma et al., 2017): a measure for super-resolution, three
random forests; slow. TOPIQ (Chen et al., 2024): KonIQ-10k.

Perceptual distances to the reference: LPIPS (Zhang et al., 2018), AlexNet, version 0.1, and DISTS (Ding et al., 2020), VGG-16.
"""

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.metric import Metric, Range, Score, WeightFile
from benchmarks.nets.fast import FastMusiq, FastTopiq, fold
from benchmarks.nets.pyiqa_nets import LICENCE, column, empty_net, fill, fill_backbone, iqa_file, pyiqa_metric, quiet
from benchmarks.weight_files import read_state
from portraitkit.errors import WeightsError, reason_of

CLIP, CLIP_SHA256 = "RN50.pt", "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"
NRQM_FILE = "NRQM_model.mat"


def folded(net: Any) -> Any:
    """NIMA's net with batch normalisation folded into its convolutions."""
    fold(net.base_model)
    return net


def open_clipiqa(files: Mapping[str, Path]) -> Score:
    """The scoring function; WeightsError: the file is no CLIP ResNet-50."""
    state = {name: value.float() for name, value in read_state(files[CLIP], torchscript_sha256=CLIP_SHA256).items()}
    try:
        with quiet():
            from pyiqa.archs.clip_model import build_model

        clip = build_model(state).float().eval()
        with patch("pyiqa.archs.clipiqa_arch.load", lambda *_: clip):
            return column(empty_net("clipiqa"))
    except (KeyError, RuntimeError) as error:
        raise WeightsError(f"{files[CLIP]}: is no CLIP ResNet-50 ({reason_of(error)}); download it again") from error


def open_nrqm(files: Mapping[str, Path]) -> Score:
    """The scoring function; WeightsError: the file is not NRQM's."""
    from scipy.io.matlab import MatReadError

    damaged = (MatReadError, zlib.error, struct.error, OSError, KeyError, IndexError, ValueError, TypeError, NotImplementedError)
    try:
        return column(empty_net("nrqm", pretrained_model_path=str(files[NRQM_FILE])))
    except damaged as error:
        raise WeightsError(f"{files[NRQM_FILE]}: is not NRQM's model ({reason_of(error)}); download it again") from error


def _distance(name: str, title: str, head: WeightFile, backbone: WeightFile, elsewhere: tuple[str, ...], licence: str) -> Metric:

    def opened(files: Mapping[str, Path]) -> Score:  # parameters whose names begin as in `elsewhere` are not the head's
        net = empty_net(name)
        fill_backbone(net, files[backbone.name])
        fill(net, files[head.name], missing=elsewhere)
        return column(net, reference=True)

    fields: dict[str, Any] = {"direction": "lower", "reference": "full", "licence": f"{LICENCE}; {licence}"}
    return pyiqa_metric(name, title, Range(0, 1), head, backbone, open=opened, **fields)


def _torchvision(name: str, digits: str, mib: float) -> WeightFile:
    return WeightFile(f"{name}-{digits}.pth", f"https://download.pytorch.org/models/{name}-{digits}.pth", digits, mib)


CLIP_FILE = WeightFile(CLIP, f"https://openaipublic.azureedge.net/clip/models/{CLIP_SHA256}/{CLIP}", CLIP_SHA256, 244)
MUSIQ_KONIQ, MUSIQ_AVA = iqa_file("musiq_koniq_ckpt-e95806b9.pth", 104), iqa_file("musiq_ava_ckpt-e8d3f067.pth", 104)
NIMA_FILE, TOPIQ_FILE = iqa_file("NIMA_InceptionV2_ava-b0c77c00.pth", 208), iqa_file("cfanet_nr_koniq_res50-9a73138b.pth", 180)
LPIPS_FILE, DISTS_FILE = iqa_file("LPIPS_v0.1_alex-df73285e.pth", 0.01), iqa_file("DISTS_weights-f5e65c96.pth", 0.02)
ALEXNET, VGG = _torchvision("alexnet-owt", "7be5be79", 233), _torchvision("vgg16", "397923af", 528)
CLIP_TERMS: dict[str, Any] = {"licence": f"{LICENCE}; CLIP: MIT", "revision": "openai/CLIP"}

CLIPIQA = pyiqa_metric("clipiqa", "quality in words (CLIP)", Range(0, 1), CLIP_FILE, open=open_clipiqa, **CLIP_TERMS)
MANIQA = pyiqa_metric("maniqa", "quality (KonIQ)", Range(0, 1), iqa_file("ckpt_koniq10k.pt", 520), smallest=224)
MUSIQ = pyiqa_metric("musiq", "quality (KonIQ)", Range(0, 100), MUSIQ_KONIQ, faster=FastMusiq, version=2)
AVA = pyiqa_metric("musiq-ava", "aesthetics (AVA)", Range(1, 10), MUSIQ_AVA, faster=FastMusiq, version=2)
NIMA = pyiqa_metric("nima", "aesthetics (AVA)", Range(0, 10), NIMA_FILE, faster=folded, version=2)
NRQM = pyiqa_metric("nrqm", "quality of super-resolution", Range(0, 10), iqa_file(NRQM_FILE, 54), open=open_nrqm, smallest=64)
TOPIQ = pyiqa_metric("topiq_nr", "quality (KonIQ)", Range(0, 1), TOPIQ_FILE, faster=FastTopiq, version=2)
LPIPS = _distance("lpips", "perceptual distance", LPIPS_FILE, ALEXNET, ("net.", "scaling_layer.", "lins."), "LPIPS: BSD-2")
DISTS = _distance("dists", "structure and texture distance", DISTS_FILE, VGG, ("stage", "mean", "std"), "DISTS: MIT")
