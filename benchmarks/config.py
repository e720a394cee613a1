"""Every option of `benchmark-portraits`. The docstring under a field is its help text."""

from dataclasses import dataclass
from pathlib import Path

from portraitkit.errors import ConfigError
from portraitkit.runs.shards import check_shard


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure retouchers with every metric that has weights; without options: the embedded retoucher's input, base and aligned pictures."""

    method: tuple[str, ...] = ()
    """What to compare, each as NAME=PLACE. PLACE: a folder, a zip file, a data set (a folder with metadata.jsonl), or a retoucher to run
    on --source: retoucher:BACKBONE, or retoucher:BACKBONE+ADAPTER_FOLDER. Pictures are matched by name without suffix."""
    source: Path | None = None
    """The untouched photos: folder, zip or data set. Metrics of identity, texture and blemishes, and the rewards, need them. A
    metadata.jsonl may name anchors (the references) and age_band, gender, skin_tone (tables by group)."""
    reference: Path | None = None
    """Known good retouches, for PSNR, SSIM, LPIPS, DISTS; the anchors of --source if not given."""
    set: Path | None = None
    """Folder of pictures that FID and KID compare with."""
    metrics: tuple[str, ...] = ()
    """Names of metrics, judge:PATH[:FORM] or my_file.py:METRIC; all for every built-in one, which is the default."""
    weights: bool = False
    """List what every metric needs, where to get it and where to put it, and end."""
    weights_dir: Path | None = None
    """Folder of weights; if not given, the environment variable PORTRAITKIT_WEIGHTS, else ~/.cache/portraitkit/weights."""
    pairs: Path | None = None
    """JSON lines {"image": .., "better": METHOD, "worse": METHOD}: how often does each metric prefer the preferred?"""
    demo: Path = Path("runs/demo")
    """Run of align-retoucher whose held-out pictures are measured when no --method is given."""
    limit: int | None = None
    """Measure the first so many photos by name."""
    seed: int = 0
    """Of the bootstrap intervals and of the permutation tests beyond 32 photos; up to there they are exact."""
    max_failed: float = 0.1
    """Share of pictures that may be unreadable; they are named in failed.jsonl. Above it the run ends."""
    cache: Path = Path("~/.cache/portraitkit/benchmark")
    """Folder of the values that are known already."""
    threads: int | None = None
    """Threads that compute; all cores if not given."""
    output_dir: Path = Path("runs/benchmark")
    """Where results.json, the tables and report.html go. The same run again goes on where it was interrupted."""
    overwrite: bool = False
    """Replace the results of another run in --output-dir."""
    shard: str | None = None
    """I/N: measure the I-th of N shares of the pictures, in a job of its own; the same command without it merges them in the end. Not
    needed under torchrun and accelerate launch."""

    def __post_init__(self) -> None:
        """Refuse impossible values before anything is read.

        Raises:
            ConfigError: a value is out of range, or a method has no name or place.
        """
        check_shard(self.shard, self.overwrite)
        names = [name for name, _ in self.methods()]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"--method {name}: is given twice; every method needs its own name")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit {self.limit}: at least 1 photo")
        if not 0 <= self.max_failed <= 1:
            raise ConfigError(f"--max-failed {self.max_failed:g}: must be in [0, 1], a share of the pictures")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed {self.seed}: must lie between 0 and 2^63 - 1")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"--threads {self.threads}: at least 1")
        if self.source is None and any(place.startswith("retoucher:") for _, place in self.methods()):
            raise ConfigError("--method .. =retoucher: needs --source, the photos to retouch")
        if not self.method and (self.source or self.reference):
            raise ConfigError("--source and --reference go with --method NAME=PLACE: name at least one, for example input=PHOTOS")

    def methods(self) -> list[tuple[str, str]]:
        """Names and places.

        Raises:
            ConfigError: one is not NAME=PLACE.
        """
        out = []
        for entry in self.method:
            name, equals, place = entry.partition("=")
            if not equals or not name.strip() or not place or any(not char.isprintable() for char in name):
                raise ConfigError(f"--method {entry}: must be NAME=PLACE, for example base=runs/base or ours=retoucher:tiny+runs/demo")
            out.append((name.strip(), place))
        return out
