"""LAION aesthetics (Schuhmann, 2022): a linear regression on CLIP ViT-L/14 embeddings, by open_clip; the backbone takes 224 px."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.metric import Metric, Pictures, Range, Score, WeightFile
from benchmarks.nets.pyiqa_nets import fill
from benchmarks.weight_files import read_state
from portraitkit.errors import WeightsError, reason_of

HEAD, CLIP = "sac+logos+ava1-l14-linearMSE.pth", "ViT-L-14.pt"
CLIP_SHA256 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
SIDE = 224
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Head(nn.Module):
    """Five linear layers without anything in between but dropout, as the published weights are named."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (width, 1024, 128, 64, 16, 1)
        linear = [nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)]
        self.layers = nn.Sequential(linear[0], nn.Dropout(0.2), linear[1], nn.Dropout(0.2), linear[2], nn.Dropout(0.1), *linear[3:])

    def forward(self, embedding: Float[Tensor, "n width"]) -> Float[Tensor, "n 1"]:
        return self.layers(embedding)


def prepare(pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 224 224"]:
    """CLIP's preprocessing: the shorter side to 224 px (bicubic), the middle square, normalised."""
    scale = SIDE / min(pixels.shape[-2:])
    size = [max(SIDE, int(side * scale)) for side in pixels.shape[-2:]]
    pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (round((side - SIDE) / 2) for side in size)
    pixels = pixels[..., top : top + SIDE, left : left + SIDE]
    mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std


def open_laion_aes(files: Mapping[str, Path]) -> Score:
    """The scoring function; WeightsError: a file is of another net."""
    from open_clip.model import build_model_from_openai_state_dict

    state = {name: value.float() for name, value in read_state(files[CLIP], torchscript_sha256=CLIP_SHA256).items()}
    try:
        clip = build_model_from_openai_state_dict(state, quick_gelu=True, cast_dtype=torch.float32).float().eval().requires_grad_(False)
    except (KeyError, RuntimeError) as error:
        raise WeightsError(f"{files[CLIP]}: is no CLIP ({reason_of(error)}); download it again") from error
    head = Head(state["text_projection"].shape[1]).eval().requires_grad_(False)
    fill(head, files[HEAD])

    def score(pictures: Pictures) -> Float[Tensor, " n"]:
        device = pictures.pixels.device
        return head.to(device)(F.normalize(clip.to(device).encode_image(prepare(pictures.pixels)), dim=-1)).flatten()

    return score


METRIC = Metric(
    name="laion_aes",
    title="aesthetics (LAION)",
    direction="higher",
    range=Range(1, 10),
    reference="none",
    licence="own code; head: its repository states none, check before use; CLIP: MIT",
    open=open_laion_aes,
    weights=(
        WeightFile(HEAD, f"https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/{HEAD}", mib=3.6),
        WeightFile(CLIP, f"https://openaipublic.azureedge.net/clip/models/{CLIP_SHA256}/{CLIP}", CLIP_SHA256, 890),
    ),
    revision="sac+logos+ava1",
    smallest=32,
)
