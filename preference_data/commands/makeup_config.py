"""Every option of `make-preferences makeup`. The docstring under a field is its help text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from portraitkit.errors import ConfigError


@dataclass(frozen=True)
class MakeupConfig:
    """Put makeup on faces: pictures with and without it, and rows with the true shapes and colours."""

    faces: Positional[Annotated[Path, arg(metavar="FACES")]]
    """Folder of face photos, searched with its subfolders; or the word embedded: synthetic people, no photos needed."""
    output_dir: Path = Path("data/makeup")
    """Where images/, train.jsonl and test.jsonl go. The same command again goes on where it was stopped."""
    count: int | None = None
    """Make at most so many pictures with makeup; every photo if not given, 200 for embedded."""
    looks_per_face: int = 1
    """Looks put on each face."""
    lips_only: bool = False
    """Lipstick alone, of the published shape, and the prompt of makeup-lips."""
    wide_colors: float = 0.25
    """Share of colours drawn evenly from sRGB; the others are such as makeup is sold in."""
    size: int = 512
    """Side of the square, aligned face crops in pixels."""
    crop: bool = True
    """Cut out and align the face; with --no-crop photos keep their frame and size, and --size is not used."""
    image_format: Literal["png", "jpg"] = "png"
    """png keeps every colour as rendered; jpg is a fifth of the size and moves colours a little."""
    min_face: int = 96
    """Photos whose largest face is smaller than so many pixels are set aside."""
    test_share: float = 0.05
    """Share of the photos whose rows go to test.jsonl."""
    max_unusable: float = 0.5
    """Stop when more than this share of the photos (20 or more seen) had to be set aside."""
    seed: int = 42
    """Looks and the split follow from it."""
    overwrite: bool = False
    """Replace what --output-dir holds, if this command made it."""

    def __post_init__(self) -> None:
        """Refuse impossible values before a picture is read.

        Raises:
            ConfigError: a value is out of range, or the folder does not exist.
        """
        rules = {
            "count": (self.count is None or self.count >= 1, "at least 1 picture"),
            "looks_per_face": (1 <= self.looks_per_face <= 1000, "from 1 to 1000"),
            "wide_colors": (0 <= self.wide_colors <= 1, "a share from 0 to 1"),
            "size": (64 <= self.size <= 4096, "from 64 to 4096 pixels"),
            "min_face": (self.min_face >= 16, "at least 16 pixels"),
            "test_share": (0 <= self.test_share < 1, "a share from 0 to below 1"),
            "max_unusable": (0 <= self.max_unusable <= 1, "a share from 0 to 1"),
            "seed": (self.seed >= 0, "0 or more"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be {rule}")
        if self.embedded and not self.crop:
            raise ConfigError("--no-crop: embedded people are made as crops; leave it out")
        if not self.embedded and not self.faces.is_dir():
            raise ConfigError(f"FACES {self.faces}: no such folder; give a folder of photos, or the word embedded")

    @property
    def embedded(self) -> bool:
        """Whether the faces are synthetic people."""
        return str(self.faces) == "embedded"
