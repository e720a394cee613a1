"""Every option of `make-preferences lint`. The docstring under a field is its help text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from portraitkit.errors import ConfigError


@dataclass(frozen=True)
class LintConfig:
    """Check a pair set, or a folder of training photos with anchors. Exit code 0: nothing found, 1: findings, 2: cannot be checked."""

    data: Positional[Annotated[Path, arg(metavar="DATA")]]
    """Folder with metadata.jsonl: pairs (input_file_name ...) or photos (file_name, anchor_file_name)."""
    json: Path | None = None
    """Also write all findings as JSON to this file; - is standard output."""
    identity: bool = True
    """Look at faces: anchors and candidates of another person, one person in two splits. Takes about a fifth of a second a picture."""
    need_anchors: bool = False
    """Report every row without an anchor; if not given, only where other rows of the set have one."""
    max_distance: float = 0.6
    """Largest identity distance between a photo and its anchor or a candidate; dlib's own rule for one person."""
    max_bits: int = 6
    """Pictures are near-duplicates if their 64-bit perceptual hashes differ in at most this many bits, and ..."""
    min_correlation: float = 0.99
    """... small grey copies of them correlate at least this much."""

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            ConfigError: a value is out of range.
        """
        if not 0 <= self.max_bits <= 64:
            raise ConfigError(f"--max-bits {self.max_bits}: must be between 0 and 64")
        if self.max_distance <= 0:
            raise ConfigError(f"--max-distance {self.max_distance:g}: must be above 0")
        if not -1 <= self.min_correlation <= 1:
            raise ConfigError(f"--min-correlation {self.min_correlation:g}: must be in [-1, 1]")
