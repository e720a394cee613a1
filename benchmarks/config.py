"""Every option of `benchmark-portraits`. The docstring under a field is its help text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from portraitkit.config import MAY_CHANGE, Options, Range, Repeatable, Seed, Share
from portraitkit.errors import ConfigError
from portraitkit.runs.shards import check_shard


def parse_methods(entries: Sequence[str], is_name: Callable[[str], bool], rule: str) -> dict[str, str]:
    """Name -> place of each `NAME=PLACE` of `--method`, in the order given; `rule` is what the message says an entry must be.
    ConfigError: not of that form, or a name used twice."""
    methods: dict[str, str] = {}
    for entry in entries:
        name, _, place = entry.partition("=")
        name = name.strip()
        if not place or not name or not is_name(name):
            raise ConfigError(f"--method {entry!r}: must be {rule}")
        if name in methods:
            raise ConfigError(f"--method {entry!r}: {name} was given before; every method needs its own name")
        methods[name] = place
    return methods


@dataclass(frozen=True)
class BenchmarkConfig(Options):
    """Measure retouchers with every metric that has weights; without options: the embedded retoucher's input, base and aligned pictures."""

    method: Annotated[tuple[str, ...], Repeatable("NAME=PLACE [NAME=PLACE ...]")] = ()
    """What to compare; several after one --method, or one after each. PLACE: a folder, a zip file, a data set (a folder with
    metadata.jsonl), or a retoucher to run on --source as retouch-portrait does: retoucher:BACKBONE, or retoucher:BACKBONE+ADAPTER_FOLDER
    (+none: the base). Pictures are matched by name without suffix."""
    source: Path | None = None
    """The untouched photos: folder, zip or data set. Metrics of identity, texture and blemishes, and the rewards, need them. A
    metadata.jsonl may name anchors (the references) and age_band, gender, skin_tone (tables by group)."""
    reference: Path | None = None
    """Known good retouches, for PSNR, SSIM, LPIPS, DISTS; the anchors of --source if not given."""
    set: Path | None = None
    """Folder of pictures that FID and KID compare with."""
    metrics: tuple[str, ...] = ()
    """Names of metrics, judge:PATH[:FORM] or my_file.py:METRIC; all for every built-in one, which is the default."""
    weights: Annotated[bool, MAY_CHANGE] = False
    """List what every metric needs, where to get it and where to put it, and end."""
    weights_dir: Path | None = None
    """Folder of weights; if not given, the environment variable PORTRAITKIT_WEIGHTS, else ~/.cache/portraitkit/weights."""
    pairs: Path | None = None
    """JSON lines {"image": .., "better": METHOD, "worse": METHOD}: how often does each metric prefer the preferred?"""
    demo: Path = Path("runs/demo")
    """Run of align-retoucher whose held-out pictures are measured when no --method is given."""
    limit: Annotated[int | None, Range(ge=1)] = None
    """Measure the first so many photos by name."""
    seed: Seed = 0
    """Of the bootstrap intervals and of the permutation tests beyond 32 photos; up to there they are exact."""
    max_failed: Annotated[Share, MAY_CHANGE] = 0.1
    """Share of pictures that may be unreadable; they are named in failed.jsonl. Above it the run ends."""
    cache: Annotated[Path, MAY_CHANGE] = Path("~/.cache/portraitkit/benchmark")
    """Folder of the values that are known already."""
    device: Annotated[str, MAY_CHANGE] = "cpu"
    """Where metrics, judges and retouchers compute: cpu, cuda, cuda:1 ...; several processes take a GPU each with cuda. Values of a GPU are
    kept apart from those of the CPU, from which they differ by rounding."""
    dtype: Annotated[Literal["float32", "bfloat16"] | None, MAY_CHANGE] = None
    """On a GPU, of judges and of nima, musiq, musiq-ava, maniqa and topiq_nr; bfloat16 for judges and float32 for metrics if not given."""
    threads: Annotated[int | None, Range(ge=1), MAY_CHANGE] = None
    """Threads that compute on the CPU; all cores if not given."""
    output_dir: Annotated[Path, MAY_CHANGE] = Path("runs/benchmark")
    """Where results.json, the tables and report.html go. The same run again goes on where it was interrupted."""
    overwrite: Annotated[bool, MAY_CHANGE] = False
    """Replace the results of another run in --output-dir."""
    shard: Annotated[str | None, MAY_CHANGE] = None
    """I/N: measure the I-th of N shares of the pictures, in a job of its own; the same command without it merges them in the end. Not
    needed under torchrun and accelerate launch."""

    def check(self) -> None:
        """Refuse impossible values before anything is read; ConfigError: a value is out of range, or a method has no name or place."""
        check_shard(self.shard, self.overwrite)
        if self.device == "cpu" and self.dtype == "bfloat16":
            raise ConfigError("--dtype bfloat16: for networks on a GPU; give --device cuda, or leave it out")
        methods = self.methods
        if self.source is None and any(place.startswith("retoucher:") for place in methods.values()):
            raise ConfigError("--method .. =retoucher: needs --source, the photos to retouch")
        if not self.method and (self.source or self.reference):
            raise ConfigError("--source and --reference go with --method NAME=PLACE: name at least one, for example input=PHOTOS")

    @property
    def methods(self) -> dict[str, str]:
        """Name -> place; ConfigError: one is not NAME=PLACE, or a name is used twice."""
        return parse_methods(self.method, str.isprintable, "NAME=PLACE, for example base=runs/base or ours=retoucher:tiny+runs/demo")
