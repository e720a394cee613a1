"""Every option of `make-preferences build`. The docstring under a field is its help text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from portraitkit.errors import ConfigError
from portraitkit.runs.shards import check_shard


@dataclass(frozen=True)
class BuildConfig:
    """Make preference pairs of photos: candidates by several generators, truth where it is known, splits by person."""

    photos: Positional[Annotated[str, arg(metavar="PHOTOS|embedded")]]
    """A folder of photos (with metadata.jsonl or without), or embedded: synthetic people, no photos needed."""
    output_dir: Path = Path("pairs")
    """Where the pair set goes. A build that was interrupted goes on there when the command is given again."""
    generators: tuple[str, ...] = ("degradations",)
    """degradations, folder:PATH (finished retouches), pipeline:PATH_OR_HUB_ID (diffusers), my_file.py:GENERATOR; several at once."""
    pairs_per_photo: int = 2
    """Pairs of each photo and kind: of the degradations, and of all other candidates together."""
    candidates: int = 2
    """Candidates that each generator makes of each photo: for a pipeline, that many seeds."""
    against_label: bool = True
    """Compare candidates also with the photo's preferred retouch, where it has one."""
    count: int = 50
    """How many embedded people, where no folder is given."""
    resolution: int | None = None
    """Side of the square face crops in pixels; 128 for embedded, 512 for photos."""
    split_shares: tuple[float, ...] = (0.8, 0.1, 0.1)
    """Of train, validation and held_out; people are never in two of them."""
    max_bad_share: float = 0.1
    """Share of photos that may be put into quarantine; with more the command fails in the end."""
    consent: str = ""
    """What the people in the photos agreed to, where metadata.jsonl does not say."""
    licence: str = ""
    """Of the photos, where metadata.jsonl does not say."""
    prompt: str = "Beautify this person's face while maintaining a natural and realistic appearance"
    """Editing instruction of pipelines."""
    num_steps: int = 28
    """Sampling steps of pipelines."""
    device: str = "cpu"
    """Of pipelines: cpu, cuda, cuda:1 ..."""
    seed: int = 0
    """Of faults, spots, sides and splits."""
    overwrite: bool = False
    """Replace the pair set that is there already."""
    shard: str | None = None
    """I/N: make the I-th of N shares of the pairs, in a job of its own; the same command without it merges them in the end. Not needed
    under torchrun and accelerate launch."""

    def __post_init__(self) -> None:
        """Refuse impossible values before anything is loaded.

        Raises:
            ConfigError: a value is out of range.
        """
        check_shard(self.shard, self.overwrite)
        for name in ("pairs_per_photo", "candidates", "num_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: at least 1")
        if self.count < 3:
            raise ConfigError(f"--count {self.count}: at least 3, one person a split")
        if not self.generators:
            raise ConfigError("--generators: name at least one, for example degradations")
        if self.resolution is not None and not 64 <= self.resolution <= 4096:
            raise ConfigError(f"--resolution {self.resolution}: must be between 64 and 4096 pixels")
        if len(self.split_shares) != 3 or min(self.split_shares) < 0 or abs(sum(self.split_shares) - 1) > 1e-6:
            raise ConfigError(f"--split-shares {self.split_shares}: three numbers of at least 0 that sum to 1")
        if not 0 <= self.max_bad_share <= 1:
            raise ConfigError(f"--max-bad-share {self.max_bad_share:g}: must be in [0, 1]")
        if not 0 <= self.seed < 2**20:
            raise ConfigError(f"--seed {self.seed}: must lie between 0 and {2**20 - 1}")

    @property
    def side(self) -> int:
        """Side of the pictures in pixels."""
        return self.resolution or (128 if self.photos == "embedded" else 512)
