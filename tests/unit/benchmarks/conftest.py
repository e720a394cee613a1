"""Pictures and weights that tests of the benchmark share."""

from pathlib import Path

import pytest
import skimage.data
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from portraitkit.pictures.images import write_image


@pytest.fixture(scope="session")
def portrait() -> Tensor:
    """NASA's portrait of Eileen Collins, (1, 3, 512, 512), RGB in [0, 1]."""
    return torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="session")
def pictures(portrait: Tensor) -> dict[str, Tensor]:
    """As it is, noisy, blurred, and cut to sides that are no multiple of anything."""
    generator = torch.Generator().manual_seed(0)
    noisy = (portrait + 0.1 * torch.randn(portrait.shape, generator=generator)).clamp(0, 1)
    return {"clean": portrait, "noisy": noisy, "blurred": avg_pool2d(portrait, 5, 1, 2), "odd": portrait[..., :301, :417].contiguous()}


@pytest.fixture
def folders(tmp_path: Path, portrait: Tensor) -> dict[str, Path]:
    """Three photos of 96 px, a method that smooths and one that sharpens: photos/, soft/, sharp/."""
    out = {name: tmp_path / name for name in ("photos", "soft", "sharp")}
    for folder in out.values():
        folder.mkdir()
    for number, left in enumerate((100, 150, 200)):
        photo = interpolate(portrait[..., 20:300, left - 60 : left + 220], 96, mode="bicubic", antialias=True).clamp(0, 1)
        blurred = avg_pool2d(photo, 3, 1, 1)
        for name, pixels in (("photos", photo), ("soft", blurred), ("sharp", (photo + (photo - blurred)).clamp(0, 1))):
            write_image(out[name] / f"p{number}.png", pixels[0])
    return out
