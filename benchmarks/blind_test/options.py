"""Every option of `blind-test make|serve|report|export`. The docstring under a field is its help text."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from benchmarks.config import parse_methods
from portraitkit.config import Options, Port, Positional, Range, Repeatable, Share
from portraitkit.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


@dataclass(frozen=True)
class MakeConfig(Options):
    """Make a blind test: pictures of the same photos by several methods, matched by file name."""

    method: Annotated[tuple[str, ...], Repeatable("NAME=DIR [NAME=DIR ...]")] = ()
    """Two or more methods' folders of pictures; several after one --method, or one after each. Raters never see the names."""
    reference: Path | None = None
    """Folder with the original photos, which raters can look at while a key is held; none if not given."""
    metadata: Path | None = None
    """metadata.jsonl with file_name and the columns of --groups; looked for in --reference, then in the methods' folders."""
    groups: tuple[str, ...] = ("age_band", "gender", "skin_tone")
    """Columns of the metadata that the report compares; those that are not there are left out."""
    output_dir: Path = Path("runs/blind-test")
    """Folder of the study."""
    photos_per_rater: Annotated[int, Range(ge=1, le=1000, rule="must be from 1 to 1000 comparisons")] = 20
    """Comparisons that each rater is asked for."""
    attention_checks: int = 2
    """Further comparisons in which one picture is plainly spoiled."""
    title: str = "Which picture is better?"
    """Heading of the first page."""
    question: str = "Which picture do you prefer?"
    """Asked above every pair; it must not hint at what the methods do."""
    max_side: Annotated[int, Range(ge=64, le=8192, rule="must be from 64 to 8192 pixels")] = 2048
    """Pictures with a longer side are reduced to it, all methods alike."""
    image_format: Literal["jpg", "png"] = "jpg"
    """What raters are sent: jpg (quality 95, full colour), or png, which is exact and several times larger."""
    max_unusable: Share = 0.2
    """Stop when more than this share of the photos had to be set aside."""
    seed: Annotated[int, Range(ge=0)] = 0
    """Of the order and the sides."""
    overwrite: bool = False
    """Replace the study in --output-dir; refused once there are votes."""

    def check(self) -> None:
        """ConfigError: fewer than two methods, a bad or repeated name, no such folder, or a number out of range."""
        if not 0 <= self.attention_checks <= self.photos_per_rater:
            raise ConfigError(f"--attention-checks {self.attention_checks}: must be from 0 to --photos-per-rater")
        for name in ("title", "question"):
            if not getattr(self, name).strip():
                raise ConfigError(f"--{name} {getattr(self, name)!r}: must be some text")
        if len(self.methods) < 2:
            raise ConfigError(f"--method: {len(self.methods)} given, a comparison needs two or more, each as NAME=DIR")
        if self.reference is not None and not self.reference.is_dir():
            raise ConfigError(f"--reference {self.reference}: no such folder")
        if self.metadata is not None and not self.metadata.is_file():
            raise ConfigError(f"--metadata {self.metadata}: no such file")

    @property
    def methods(self) -> dict[str, Path]:
        """Name -> folder; ConfigError: not NAME=DIR, a name used twice, or no such folder."""
        rule = "NAME=DIR; a name has up to 40 letters, digits, '.', '_', '-'"
        methods = parse_methods(self.method, lambda name: NAME.fullmatch(name) is not None, rule)
        for name, folder in methods.items():
            if not Path(folder).is_dir():
                raise ConfigError(f"--method {name}={folder}: no such folder")
        return {name: Path(folder) for name, folder in methods.items()}


@dataclass(frozen=True)
class ServeConfig(Options):
    """Serve a blind test as a web page. Ctrl-C stops it; the same command goes on where it stopped, no vote is lost."""

    folder: Annotated[Path, Positional("FOLDER")]
    """What blind-test make wrote."""
    host: str = "127.0.0.1"
    """Address to listen on; anything but loopback opens the study to the network, with a warning."""
    port: Port = 8000
    """Port; 0 takes a free one."""
    allowed_hosts: tuple[str, ...] = ()
    """Further host names under which browsers may ask, such as that of a reverse proxy; others are refused on loopback."""
    max_raters: Annotated[int, Range(ge=1)] = 10_000
    """No more raters than this are let in: bounds what a stranger can write."""


@dataclass(frozen=True)
class ReportConfig(Options):
    """Report what raters said: report.html, report.md and results.json in the study's folder."""

    folder: Annotated[Path, Positional("FOLDER")]
    """What blind-test make wrote and blind-test serve filled."""
    max_failed_checks: Annotated[int, Range(ge=0)] = 0
    """Raters who failed more attention checks than this are left out; a tie on a check is a failure."""
    detect: Annotated[float, Range(gt=0.5, lt=1, rule="must be a win rate above .5 and below 1")] = 0.55
    """True win rate that the study should find: the report says how many more votes that takes."""
    draws: Annotated[int, Range(ge=100, le=100_000)] = 2000
    """Bootstrap draws."""
    seed: Annotated[int, Range(ge=0)] = 0
    """Of the bootstrap."""


@dataclass(frozen=True)
class ExportConfig(Options):
    """Write every vote with the methods' names. Raters are numbers; nothing personal is stored."""

    folder: Annotated[Path, Positional("FOLDER")]
    """What blind-test make wrote and blind-test serve filled."""
    output: Path = Path("votes.csv")
    """File to write; .csv or .jsonl."""
    overwrite: bool = False
    """Replace the file if it is there."""

    def check(self) -> None:
        """Refuse an unknown format before the votes are read; ConfigError: the suffix is neither .csv nor .jsonl."""
        if self.output.suffix.lower() not in (".csv", ".jsonl"):
            raise ConfigError(f"--output {self.output}: must end in .csv or .jsonl")
