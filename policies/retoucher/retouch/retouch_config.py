"""Every option of `retouch-portrait`. The docstring under a field is its help text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from policies.retoucher.config import RetoucherConfig
from policies.retoucher.config_rules import check_guidance
from portraitkit.errors import ConfigError


@dataclass(frozen=True)
class RetouchConfig:
    """Retouch every face of a photo, or of every photo in a folder, and leave the rest of the pictures as it is."""

    source: Positional[Annotated[Path, arg(metavar="IN")]]
    """A photo, or a folder of photos."""
    target: Positional[Annotated[Path, arg(metavar="OUT")]]
    """Where to write: a file or a folder; a folder if IN is one."""
    backbone: str = "tiny"
    """tiny (embedded, CPU), flux_kontext, qwen_image_edit, qwen_image_edit_plus, or my_file.py:BACKBONE."""
    model: str | None = None
    """Hub id or local folder of the backbone's weights; the backbone's own default if not given."""
    adapter: str | None = None
    """Folder with the pytorch_lora_weights.safetensors that align-retoucher wrote, such as runs/demo; the base if not given."""
    resolution: int | None = None
    """Side of the square face crops in pixels; the backbone's own if not given."""
    num_steps: int = RetoucherConfig.num_steps
    """Sampling steps."""
    prompt: str = RetoucherConfig.prompt
    """Editing instruction."""
    seed: int = 0
    """Of the initial noise, the same for every face."""
    strength: float = 1.0
    """Share of the edit that is applied: 0 leaves the photo as it is, 1 is the whole retouch."""
    min_face: int = 32
    """Smallest side of a face in pixels; smaller ones are left as they are."""
    guidance: float | None = None
    """Guidance scale; the backbone's own if not given. On qwen_image_edit it is true classifier-free guidance: at 1 it is off,
    at half the cost."""
    negative_prompt: str = " "
    """What true classifier-free guidance leads away from."""
    quantize: Literal["none", "nf4"] = "none"
    """nf4: the transformer's frozen weights in 4 bits (bitsandbytes); LoRA stays float32."""
    offload_text_encoder: bool = False
    """Text encoders are on the device only while they encode."""
    vae_tiling: bool = False
    """Encode and decode large pictures in tiles, in less memory."""
    overwrite: bool = False
    """Replace files that are there already."""
    device: str = "cpu"
    """cpu, cuda, cuda:1 ..."""

    def __post_init__(self) -> None:
        """Refuse impossible values before any model is loaded.

        Raises:
            ConfigError: a value is out of range.
        """
        check_guidance(self.guidance)
        if not 0 <= self.strength <= 1:
            raise ConfigError(f"--strength {self.strength:g}: must be in [0, 1], the share of the edit that is applied")
        if self.num_steps < 1:
            raise ConfigError(f"--num-steps {self.num_steps}: at least 1 sampling step")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed {self.seed}: must lie between 0 and 2^63 - 1")
        if self.min_face < 1:
            raise ConfigError(f"--min-face {self.min_face}: at least 1 pixel")
