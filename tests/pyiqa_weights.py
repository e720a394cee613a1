"""Random weights of the nets behind the metrics, in files as they are published; where a net may be small, it is."""

from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.nets.pyiqa_nets import quiet


def save(path: Path, state: dict[str, Tensor]) -> Path:
    """Write a state; the path with the ending that it got."""
    save_file({key: value.contiguous().clone() for key, value in state.items()}, path := path.with_suffix(".safetensors"))
    return path


def resnet_clip() -> Any:
    """CLIP with a ResNet, as CLIP-IQA takes it: few and thin layers."""
    with quiet():
        from pyiqa.archs.clip_model import CLIP

    torch.manual_seed(0)
    return CLIP(64, 224, (1, 1, 1, 1), 16, None, 77, 49408, 64, 1, 1).eval().half().float()  # which pyiqa's loader rounds to


def vit_clip() -> Any:
    """CLIP with a vision transformer, as LAION's aesthetics take it: 768 numbers a picture from few and thin layers."""
    from clip.model import CLIP

    torch.manual_seed(0)
    return CLIP(768, 224, 2, 128, 14, 77, 512, 64, 1, 1).eval().half().float()  # open_clip rounds to half precision


def head_and_backbone(net: torch.nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The states of the two files of LPIPS or DISTS."""
    backbone = {
        ".".join(["features", *key.rsplit(".", 2)[1:]]): value.data.clone()
        for key, value in net.named_parameters()
        if key.startswith(("net.slice", "stage"))
    }
    return {key: value.abs() for key, value in net.state_dict().items() if key.startswith(HEADS)}, backbone


HEADS = (*(f"lin{digit}" for digit in range(10)), "alpha", "beta")


def write_forests(path: Path) -> None:
    """Three forests of 8 stumps and deeper trees in the layout of NRQM_model.mat, and the four linear weights."""
    generator = np.random.default_rng(0)
    forests = np.empty((1, 3), dtype=object)
    for number, features in enumerate((9, 45, 75)):
        left, right = np.tile([[2], [4], [0], [0], [0]], 8), np.tile([[3], [5], [0], [0], [0]], 8)
        thresholds, predictions = np.exp(1.5 * generator.standard_normal((5, 8))), generator.random((5, 8)) * 10
        best = generator.integers(1, features + 1, (5, 8))
        names = ["lDau", "rDau", "nodestatus", "nrnodes", "upper", "avnode", "mbest"]
        values = (left, right, np.zeros((1, 1)), np.zeros((1, 1)), thresholds, predictions, best)
        forests[0, number] = dict(zip(names, values, strict=True))
    scipy.io.savemat(path, {"model": {"linear": np.array([[0.3], [0.2], [0.4], [0.1]]), "rf": forests}})


def write_inception(path: Path) -> Any:
    """FID's net, which is returned, and its file."""
    from unittest.mock import patch

    torch.manual_seed(0)
    with quiet():
        from pyiqa.archs import inception

        with patch.object(inception, "load_pretrained_network", lambda net, _: torch.save(net.state_dict(), path)):
            return inception.InceptionV3().eval()
