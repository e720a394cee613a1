"""The embedded retoucher: FLUX.1 Kontext's architecture at 3.5 M parameters, 128 px, small enough to commit and to train on a CPU.

`python -m tools.embedded.retoucher` made, trained and wrote `embedded/`; `BACKBONE` loads that folder. Same classes, latent packing,
position ids and velocity convention as the real model, so everything written against it runs on FLUX.1 Kontext.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from portraitkit.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from diffusers import FluxKontextPipeline

    from policies.retoucher.backbones.flux_kontext import KontextBackbone

EMBEDDED = Path(__file__).parent / "embedded"
RESOLUTION = 128
PROMPT = "Beautify this person's face while maintaining a natural and realistic appearance"
TEXT_TOKENS = 16


def load_tiny(model: str | None, resolution: int | None, device: str) -> "KontextBackbone":
    """The committed embedded retoucher, or one of the same make in a folder of yours; ConfigError for another resolution."""
    from diffusers import FluxKontextPipeline

    if resolution not in (None, RESOLUTION):
        raise ConfigError(f"--resolution {resolution}: the embedded retoucher works at {RESOLUTION} px; leave the option out")
    folder = Path(model) if model is not None else EMBEDDED
    if not (folder / "model_index.json").is_file():
        raise WeightsError(f"{folder}: holds no diffusers pipeline (model_index.json); `make embedded` rebuilds the embedded one")
    return wrap(FluxKontextPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True).to(device))


def wrap(pipeline: "FluxKontextPipeline") -> "KontextBackbone":
    """A pipeline of this make as a backbone."""
    from policies.retoucher.backbones.flux_kontext import LORA_TARGETS, KontextBackbone

    return KontextBackbone(
        pipeline,
        name="tiny",
        resolution=RESOLUTION,
        text_tokens=TEXT_TOKENS,
        guidance=1.0,
        add_residual=True,
        base_model="portraitkit/embedded-retoucher",
        licence="apache-2.0",
        batch=32,
        # One double block in place of nineteen: the published modules alone leave the policy little to move.
        lora_targets=[*LORA_TARGETS, "proj_mlp", "proj_out"],
    )


BACKBONE = load_tiny
