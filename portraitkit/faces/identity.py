"""Who is it: dlib's face recognition ResNet (King, 2017), 128 numbers per face, differentiable.

The net looks at an aligned chip of 150 px. Two chips of one person lie closer than .6 in Euclidean distance, two people
further apart (dlib's own rule, 99.38 % on LFW).
"""

from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from portraitkit.faces.tfjs import read_json, read_weights, unpack_weights
from portraitkit.faces.warp import sample, similarity

CHIP = 150
SAME_PERSON = 0.6
MEAN_RGB = (122.782, 117.001, 104.298)
PADDING = 0.25
TEMPLATE = {
    263: (0.8595674595992, 0.2134981538014),
    362: (0.6460604764104, 0.2289674387677),
    33: (0.1205750620789, 0.2137274526848),
    133: (0.3340850613712, 0.2290642403242),
    2: (0.4901123135679, 0.6277975316475),
}
"""Mesh point -> place in dlib's unit face: outer and inner corners of the left and the right eye, base of the nose."""

STAGES = (
    ("conv32_1", "conv32_2", "conv32_3"),
    ("conv64_down", "conv64_1", "conv64_2", "conv64_3"),
    ("conv128_down", "conv128_1", "conv128_2"),
    ("conv256_down", "conv256_1", "conv256_2", "conv256_down_out"),
)


class Block(nn.Module):
    """Two 3 x 3 convolutions around a shortcut; `down` halves the picture and fills the shortcut's missing channels
    with zeros."""

    def __init__(self, weights: dict[str, Tensor], name: str) -> None:
        super().__init__()
        self.down = "down" in name
        self.first = _convolution(weights, f"{name}/conv1", stride=2 if self.down else 1)
        self.second = _convolution(weights, f"{name}/conv2", stride=1)

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c2 h2 w2"]:
        """Run the block."""
        y = self.second(F.relu(self.first(x)))
        if self.down:
            x = F.avg_pool2d(x, 2)
            x = F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
            y = F.pad(y, (0, x.shape[3] - y.shape[3], 0, x.shape[2] - y.shape[2]))
        return F.relu(x + y)


class IdentityNet(nn.Module):
    """dlib's ResNet of 29 convolutions with face-api's weights."""

    head: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        manifest = read_json("face_recognition_model-weights_manifest.json")
        weights = unpack_weights(manifest[0]["weights"], read_weights("face_recognition_model.bin"))
        self.stem = _convolution(weights, "conv32_down", stride=2)
        self.blocks = nn.Sequential(*(Block(weights, name) for stage in STAGES for name in stage))
        self.register_buffer("head", weights["fc"])
        self.register_buffer("mean", torch.tensor(MEAN_RGB)[:, None, None])

    def forward(self, chips: Float[Tensor, "batch 3 150 150"]) -> Float[Tensor, "batch 128"]:
        """Embed aligned chips (RGB, [0, 1]) in float32, whatever autocast says."""
        with torch.autocast(chips.device.type, enabled=False):
            x = (chips.float() * 255 - self.mean) / 256
            x = F.max_pool2d(F.relu(self.stem(x)), 3, 2)
            return self.blocks(x).mean((2, 3)) @ self.head


def _convolution(weights: dict[str, Tensor], name: str, stride: int) -> nn.Conv2d:
    """The convolution `name` with its per-channel scale and shift folded in; those with a stride are not padded."""
    prefix = name if f"{name}/conv/filters" in weights else f"{name}/conv"
    filters, bias = weights[f"{prefix}/conv/filters"], weights[f"{prefix}/conv/bias"]
    scale, shift = weights[f"{prefix}/scale/weights"], weights[f"{prefix}/scale/biases"]
    size, _, c_in, c_out = filters.shape
    padding = 0 if stride == 2 else size // 2
    layer = nn.Conv2d(c_in, c_out, size, stride, padding, device="meta")  # leaves the random state alone
    layer.weight = nn.Parameter((filters * scale).permute(3, 2, 0, 1).contiguous(), requires_grad=False)
    layer.bias = nn.Parameter(bias * scale + shift, requires_grad=False)
    return layer


@cache
def _net(device: torch.device) -> IdentityNet:
    with torch.inference_mode(False):  # else a first call in inference mode would rule out gradients for ever
        return IdentityNet().eval().to(device)


def identity_chips(pixels: Float[Tensor, "batch 3 h w"], meshes: Float[Tensor, "#batch 468 dim"]) -> Float[Tensor, "batch 3 150 150"]:
    """Cut aligned chips: the least-squares similarity from five mesh points to dlib's template with a quarter of padding.

    Pixels are in [0, 1]; meshes in pixels of the pictures, one for all or one each, are taken as given: gradients reach the pixels only.
    """
    points = meshes[:, list(TEMPLATE), :2].detach().to(pixels).expand(len(pixels), -1, -1)
    target = (pixels.new_tensor(list(TEMPLATE.values())) + PADDING) / (1 + 2 * PADDING) * CHIP
    return sample(pixels, similarity(points, target.expand_as(points)), CHIP, outside="zeros")


def identity_embedding(pixels: Float[Tensor, "batch 3 h w"], meshes: Float[Tensor, "#batch 468 dim"]) -> Float[Tensor, "batch 128"]:
    """Embed faces, see `identity_chips`; embeddings are not of unit length, and differentiable with respect to `pixels`."""
    return _net(pixels.device)(identity_chips(pixels, meshes))


def identity_distance(a: Float[Tensor, "batch dim"], b: Float[Tensor, "#batch dim"]) -> Float[Tensor, " batch"]:
    """Euclidean distance of embeddings; below .6 dlib takes two faces for one person."""
    return (a - b).norm(dim=-1)


def identity_cosine(a: Float[Tensor, "batch dim"], b: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
    """Cosine similarity of embeddings, in [-1, 1]. dlib's embeddings are not centred: two people may well have .8."""
    return F.cosine_similarity(a, b, dim=-1)
