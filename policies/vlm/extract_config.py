"""Every option of `extract-makeup`. The docstring under a field is its help text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from portraitkit.errors import ConfigError


@dataclass(frozen=True)
class ExtractConfig:
    """Print the makeup that a face wears as JSON, and show it on a second face."""

    photo: Positional[Annotated[Path, arg(metavar="PHOTO")]]
    """A photo of one face, of any size."""
    model: str = "embedded"
    """embedded (tiny Qwen2.5-VL, CPU), a local folder as align-vlm writes it, or a hub id."""
    adapter: str | None = None
    """A LoRA of align-vlm --rank, merged into the model."""
    face: Path | None = None
    """A photo of the face to try the makeup on; a portrait that ships with the package if not given."""
    output_dir: Path | None = None
    """Where makeup.json and try_on.png go; runs/extract-makeup/PHOTO if not given."""
    lips_only: bool = False
    """Ask for the lipstick's colour alone, as the task makeup-lips does."""
    prompt: Literal["auto", "full", "brief"] = "auto"
    """full: the task's instruction; brief: what a model that knows it is asked; auto: brief for the embedded model and its offspring."""
    size: int | None = None
    """Side of the aligned face that the model is shown, in pixels; 128 for a model asked briefly, 512 for others."""
    min_face: int = 64
    """Faces smaller than so many pixels do not count."""
    max_tokens: int = 256
    """Most tokens of an answer."""
    max_pixels: int | None = None
    """Largest picture in pixels; larger ones are scaled down before they become tokens."""
    device: str = "cpu"
    """cpu, cuda ..."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights."""
    overwrite: bool = False
    """Replace the files that --output-dir holds."""

    def __post_init__(self) -> None:
        """Refuse impossible values before a picture is read.

        Raises:
            ConfigError: a value is out of range.
        """
        rules = {
            "size": (self.size is None or 64 <= self.size <= 4096, "from 64 to 4096 pixels"),
            "min_face": (self.min_face >= 16, "at least 16 pixels"),
            "max_tokens": (self.max_tokens >= 1, "at least 1 token"),
            "max_pixels": (self.max_pixels is None or self.max_pixels >= 784, "28 x 28 = 784 pixels or more"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be {rule}")

    @property
    def folder(self) -> Path:
        """Where the files go."""
        return self.output_dir or Path("runs/extract-makeup") / self.photo.stem
