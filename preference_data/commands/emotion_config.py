"""Every option of `make-preferences emotion`. The docstring under a field is its help text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from portraitkit.errors import ConfigError


@dataclass(frozen=True)
class EmotionConfig:
    """Turn a facial-expression data set, in the folders it was delivered in, into rows that align-vlm --task emotion reads."""

    dataset: Positional[Annotated[str, arg(metavar="DATASET")]]
    """disfa, bp4d, raf-au, faba, fer2013, affectnet, raf-db, expw, jsonl, or my_file.py:ADAPTER."""
    folder: Positional[Annotated[Path, arg(metavar="FOLDER")]]
    """Where the data set lies."""
    output_dir: Path = Path("data/emotion")
    """Where train.jsonl, test.jsonl and images go. The same command again goes on where it was stopped."""
    copy_images: bool = False
    """Copy pictures to --output-dir; otherwise its images/ is a link to the data set. Frames and face crops are written to faces/."""
    split: Literal["official", "subject"] = "official"
    """official: the data set's own split, or the usual one, where there is one; subject: drawn, whole subjects at a time."""
    test_share: float = 0.1
    """Share of the subjects (of the rows, where nobody is identified) in test.jsonl where a split is drawn."""
    every: int = 1
    """Of a video's frames, take each so-manieth; neighbouring frames hardly differ."""
    min_intensity: int = 2
    """Action units count as present from this intensity on, where intensities are labelled (DISFA)."""
    count: int = 0
    """Most rows of each split, drawn at random; 0 takes all."""
    check_images: bool = False
    """Decode every picture, and set aside those that cannot be read."""
    max_unusable: float = 0.1
    """Stop when more than this share of the rows (100 or more seen) had to be set aside for their pictures."""
    seed: int = 42
    """The drawn split and --count follow from it."""
    overwrite: bool = False
    """Replace what --output-dir holds, if this command made it."""

    def __post_init__(self) -> None:
        """Refuse impossible values before a file is read.

        Raises:
            ConfigError: a value is out of range, or the folder does not exist.
        """
        rules = {
            "test_share": (0 <= self.test_share < 1, "a share from 0 to below 1"),
            "every": (self.every >= 1, "1 or more"),
            "min_intensity": (1 <= self.min_intensity <= 5, "from 1 to 5"),
            "count": (self.count >= 0, "0 or more"),
            "max_unusable": (0 <= self.max_unusable <= 1, "a share from 0 to 1"),
            "seed": (self.seed >= 0, "0 or more"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be {rule}")
        if not self.folder.is_dir():
            raise ConfigError(f"FOLDER {self.folder}: no such folder; give the folder of the data set")
        if self.output_dir.resolve() == self.folder.resolve():
            raise ConfigError(f"--output-dir {self.output_dir}: is the data set's own folder; choose another")
