"""A second opinion on who it is: ArcFace (Deng et al., 2019, https://arxiv.org/abs/1801.07698) from insightface's model
packs, by onnxruntime.

Nothing is downloaded. insightface's code is MIT; its model packs are for non-commercial research only, which is why
none is bundled.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from portraitkit.errors import WeightsError
from portraitkit.faces.regions import LEFT_EYE, RIGHT_EYE
from portraitkit.faces.warp import sample, similarity

CHIP = 112
DEFAULT_FOLDER = Path("~/.insightface/models/buffalo_l")
FILES = ("w600k_r50.onnx", "w600k_mbf.onnx", "glintr100.onnx")
TEMPLATE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
"""Right eye, left eye, tip of the nose, right and left corner of the mouth, at pixel centres of the chip."""
NOSE_TIP, MOUTH_RIGHT, MOUTH_LEFT = 4, 61, 291


@dataclass(frozen=True)
class ArcFaceIdentity:
    """ArcFace embeddings of unit length; open with `open_arcface`."""

    session: Any  # onnxruntime.InferenceSession of the recognition net

    def embedding(self, pixels: Float[Tensor, "batch 3 h w"], meshes: Float[Tensor, "batch 468 dim"]) -> Float[Tensor, "batch dim2"]:
        """Embed faces: (batch, 512), unit length, no gradient; see `identity.identity_embedding`."""
        chips = (arcface_chips(pixels.detach(), meshes) * 255 - 127.5) / 127.5
        (features,) = self.session.run(None, {self.session.get_inputs()[0].name: chips.cpu().numpy()})  # onnxruntime takes them from there
        return F.normalize(torch.from_numpy(features).to(pixels), dim=-1)

    def distance(self, a: Float[Tensor, "batch dim"], b: Float[Tensor, "#batch dim"]) -> Float[Tensor, " batch"]:
        """1 - cosine, in [0, 2]."""
        return 1 - F.cosine_similarity(a, b, dim=-1)


def arcface_chips(pixels: Float[Tensor, "batch 3 h w"], meshes: Float[Tensor, "batch 468 dim"]) -> Float[Tensor, "batch 3 112 112"]:
    """Cut chips aligned to ArcFace's five points, RGB in [0, 1]."""
    points = meshes[..., :2].detach().to(pixels)
    eyes = [points[:, list(eye)].mean(1) for eye in (RIGHT_EYE, LEFT_EYE)]
    five = torch.stack([*eyes, points[:, NOSE_TIP], points[:, MOUTH_RIGHT], points[:, MOUTH_LEFT]], 1)
    target = pixels.new_tensor(TEMPLATE) + 0.5
    return sample(pixels, similarity(five, target.expand_as(five)), CHIP, outside="zeros")


def open_arcface(path: Path | None = None, device: str = "cpu") -> ArcFaceIdentity:
    """Open the recognition net of an insightface model pack.

    `path` is the pack's folder or the ONNX file itself; None is insightface's own place, `~/.insightface/models/buffalo_l`. On a `device`
    such as cuda:1 a GPU is used where this onnxruntime has CUDA (package onnxruntime-gpu), else the CPU.

    Raises:
        WeightsError: onnxruntime is not installed, no net lies there, or it is not an ArcFace net.
    """
    try:
        import onnxruntime
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf
    except ImportError as error:
        raise WeightsError("the arcface judge needs onnxruntime: pip install onnxruntime") from error
    folder = (path or DEFAULT_FOLDER).expanduser()
    candidates = [folder] if folder.suffix == ".onnx" else [folder / name for name in FILES]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise WeightsError(
            f"no ArcFace net at {folder}: download the model pack buffalo_l from "
            "https://github.com/deepinsight/insightface/releases (non-commercial research only), unzip it, "
            f"and put its {FILES[0]} there"
        )
    try:
        session = onnxruntime.InferenceSession(str(file), providers=_providers(device, onnxruntime.get_available_providers()))
    except (Fail, InvalidGraph, InvalidProtobuf) as error:
        raise WeightsError(f"{file}: not a readable ONNX model, download it again") from error
    shapes = [tensor.shape for tensor in (*session.get_inputs(), *session.get_outputs())]
    if len(shapes) != 2 or shapes[0][1:] != [3, CHIP, CHIP] or len(shapes[1]) != 2:
        raise WeightsError(f"{file}: shapes {shapes}, an ArcFace net maps [batch, 3, {CHIP}, {CHIP}] to [batch, n]")
    (features,) = session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, CHIP, CHIP), np.float32)})
    if not np.isfinite(np.asarray(features)).all():
        raise WeightsError(f"{file}: its weights are not finite (they hold NaN or infinity); download it again")
    return ArcFaceIdentity(session)


def _providers(device: str, available: list[str]) -> list[str | tuple[str, dict[str, int]]]:
    """Where a net runs, the first that can: the GPU that is asked for, then the CPU."""
    kind, _, index = device.partition(":")
    gpu = [("CUDAExecutionProvider", {"device_id": int(index or 0)})] if kind == "cuda" and "CUDAExecutionProvider" in available else []
    return [*gpu, "CPUExecutionProvider"]
