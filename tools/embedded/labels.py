"""The retouches of mixed quality that real label sets hold, of which the embedded retoucher learns."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from preference_data.people.synthetic import Case

Image = Float[Tensor, "3 h w"]
Mask = Float[Tensor, "1 h w"]


def good(source: Image, clean: Image, skin: Mask, strength: float) -> Image:
    """The honest retouch: every blemish gone, everything else as it was."""
    return clean


def half_done(source: Image, clean: Image, skin: Mask, strength: float) -> Image:
    """Blemishes only faded: 45 % (strength 0) to 90 % (strength 1) of each is left."""
    return torch.lerp(clean, source, 0.45 + 0.45 * strength)


def over_smoothed(source: Image, clean: Image, skin: Mask, strength: float) -> Image:
    """Plastic skin: blemishes mostly gone, and pores and shading blurred with them (Gaussian, 1.2 to 2.6 px at 128 px)."""
    sigma = (1.2 + 1.4 * strength) * source.shape[-1] / 128
    faded = torch.lerp(clean, source, 0.25)
    width = 2 * int(3 * sigma + 0.5) + 1
    blurred = gaussian_blur(faded, kernel_size=[width, width], sigma=[sigma, sigma])
    return torch.lerp(faded, blurred, 0.9 * skin)


def whitened(source: Image, clean: Image, skin: Mask, strength: float) -> Image:
    """Blemishes half gone, skin brightened by 5 % to 12 % and slightly desaturated."""
    faded = torch.lerp(clean, source, 0.4)
    grey = faded.mean(0, keepdim=True)
    bright = (grey + 0.92 * (faded - grey)) * (1.05 + 0.07 * strength)
    return torch.lerp(faded, bright, skin).clamp(0.0, 1.0)


LABELS: dict[str, Callable[[Image, Image, Mask, float], Image]] = {
    "good": good,
    "half_done": half_done,
    "over_smoothed": over_smoothed,
    "whitened": whitened,
}
LABEL_SHARES = {"good": 0.30, "half_done": 0.35, "over_smoothed": 0.20, "whitened": 0.15}


def make_label(case: Case, generator: torch.Generator, kind: str | None = None) -> Float[Tensor, "3 h w"]:
    """A retouch of mixed quality, as label sets have them: kind drawn by `LABEL_SHARES` unless given."""
    if kind is None:
        shares = torch.tensor(list(LABEL_SHARES.values()))
        kind = list(LABEL_SHARES)[int(torch.multinomial(shares, 1, generator=generator))]
    strength = float(torch.rand(1, generator=generator))
    return LABELS[kind](case.source, case.clean, case.skin, strength)
