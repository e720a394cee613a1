"""sRGB to CIELAB, differentiable. IEC 61966-2-1 transfer curve, D65 white, CIE 1976 L*a*b*."""

import torch
from jaxtyping import Float
from torch import Tensor

# Linear sRGB to XYZ, rows X, Y, Z; divided by the D65 white so that white is (1, 1, 1).
_XYZ = torch.tensor([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
_XYZ_OVER_WHITE = _XYZ / torch.tensor([0.95047, 1.0, 1.08883])[:, None]


def luminance(image: Float[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 1 h w"]:
    """Rec. 601 luma of gamma-encoded RGB, in [0, 1] for images in [0, 1]."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=image.dtype, device=image.device)
    return (image * weights.view(3, 1, 1)).sum(-3, keepdim=True)


def srgb_to_lab(image: Float[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 3 h w"]:
    """CIELAB of gamma-encoded sRGB in [0, 1]: L* in [0, 100], a* and b* roughly in [-128, 128]. The gradient is finite at 0."""
    image = image.clamp(0, 1)
    linear = torch.where(image <= 0.04045, image / 12.92, ((image.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)
    xyz = torch.einsum("ij,...jhw->...ihw", _XYZ_OVER_WHITE.to(image), linear)
    cut = (6 / 29) ** 3
    f = torch.where(xyz > cut, xyz.clamp_min(cut) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.unbind(-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-3)


def lab_to_srgb(lab: Float[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 3 h w"]:
    """The inverse of `srgb_to_lab`; colours outside sRGB are clipped to [0, 1]. The gradient is finite everywhere."""
    lightness, a, b = lab.unbind(-3)
    y = (lightness + 16) / 116
    f = torch.stack([y + a / 500, y, y - b / 200], dim=-3)
    xyz = torch.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    linear = torch.einsum("ij,...jhw->...ihw", torch.linalg.inv(_XYZ_OVER_WHITE).to(lab), xyz)
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp_min(0.0031308) ** (1 / 2.4) - 0.055, 12.92 * linear).clamp(0, 1)
