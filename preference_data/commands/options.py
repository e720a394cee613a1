"""Every option of the subcommands of `make-preferences`. The docstring under a field is its help text. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from portraitkit.config import MAY_CHANGE, AtLeast0, AtLeast1, NotNegative, Options, Port, Positional, Positive, Range, Share
from portraitkit.errors import ConfigError
from portraitkit.runs.shards import check_shard
from preference_data.sources import load_adapter

TestShare = Annotated[float, Range(ge=0, lt=1, rule="must be a share from 0 to below 1")]
Pixels = Annotated[int | None, Range(ge=64, le=4096, rule="must be between 64 and 4096 pixels")]


@dataclass(frozen=True)
class BuildConfig(Options):
    """Make preference pairs of photos: candidates by several generators, truth where it is known, splits by person."""

    photos: Annotated[str, Positional("PHOTOS|embedded")]
    """A folder of photos (with metadata.jsonl or without), or embedded: synthetic people, no photos needed."""
    output_dir: Annotated[Path, MAY_CHANGE] = Path("pairs")
    """Where the pair set goes. A build that was interrupted goes on there when the command is given again."""
    anchors: Literal["file", "painted"] | None = None
    """Honest retouches that degradations start from: file, the anchor_file_name of every photo; painted, the photos are clean portraits,
    and blemishes are painted onto them. If not given, each photo has its file, or is painted where it has none."""
    generators: tuple[str, ...] = ("degradations",)
    """degradations (known faults on an honest retouch), degradations:gross, degradations:clean (of photos that need nothing), rollout (of
    the embedded retoucher, two a group; rollout:4, four), folder:PATH (finished retouches), pipeline:PATH_OR_HUB_ID (diffusers),
    my_file.py:GENERATOR; several at once."""
    pairs_per_photo: AtLeast1 = 2
    """Pairs of each photo and kind: of degradations, of rollouts (as many as a group has members, if that is more), of all other
    candidates together."""
    candidates: AtLeast1 = 2
    """Candidates that each generator makes of each photo: for a pipeline, that many seeds."""
    against_label: bool = True
    """Compare candidates also with the photo's preferred retouch, where it has one."""
    count: Annotated[int, Range(ge=3, rule="must be at least 3, one person a split")] = 50
    """How many embedded people, where no folder is given."""
    resolution: Pixels = None
    """Side of the square face crops in pixels; 128 for embedded, 512 for photos."""
    split_shares: tuple[float, ...] = (0.8, 0.1, 0.1)
    """Of train, validation and held_out; people are never in two of them."""
    max_bad_share: Annotated[Share, MAY_CHANGE] = 0.1
    """Share of photos that may be put into quarantine; with more the command fails in the end."""
    consent: str = ""
    """What the people in the photos agreed to, where metadata.jsonl does not say."""
    licence: str = ""
    """Of the photos, where metadata.jsonl does not say."""
    prompt: str = "Beautify this person's face while maintaining a natural and realistic appearance"
    """Editing instruction of pipelines."""
    num_steps: AtLeast1 = 28
    """Sampling steps of pipelines."""
    device: str = "cpu"
    """Of pipelines: cpu, cuda, cuda:1 ..."""
    seed: Annotated[int, Range(ge=0, lt=2**20, rule=f"must be between 0 and {2**20 - 1}")] = 0
    """Of faults, spots, sides and splits."""
    overwrite: Annotated[bool, MAY_CHANGE] = False
    """Replace the pair set that is there already."""
    shard: Annotated[str | None, MAY_CHANGE] = None
    """I/N: make the I-th of N shares of the pairs, in a job of its own; the same command without it merges them in the end. Not needed
    under torchrun and accelerate launch."""

    def check(self) -> None:
        """ConfigError: no generator, shares that are none, or a shard that cannot be."""
        check_shard(self.shard, self.overwrite)
        if not self.generators:
            raise ConfigError("--generators: name at least one, for example degradations")
        if any(name.partition(":")[0] == "rollout" for name in self.generators) and self.side != 128:
            raise ConfigError("--generators rollout: the embedded retoucher works at 128 px; add --resolution 128")
        if len(self.split_shares) != 3 or min(self.split_shares) < 0 or abs(sum(self.split_shares) - 1) > 1e-6:
            raise ConfigError(f"--split-shares {self.split_shares}: three numbers of at least 0 that sum to 1")

    @property
    def side(self) -> int:
        """Side of the pictures in pixels."""
        return self.resolution or (128 if self.photos == "embedded" else 512)


@dataclass(frozen=True)
class LintConfig(Options):
    """Check a pair set, or a folder of training photos with anchors. Exit code 0: nothing found, 1: findings, 2: cannot be checked."""

    data: Annotated[Path, Positional("DATA")]
    """Folder with metadata.jsonl: pairs (input_file_name ...) or photos (file_name, anchor_file_name); without it, of photos alone."""
    json: Path | None = None
    """Also write all findings as JSON to this file; - is standard output."""
    identity: bool = True
    """Look at faces: anchors and candidates of another person, one person in two splits. Takes about a fifth of a second a picture."""
    need_anchors: bool = False
    """Report every row without an anchor; if not given, only where other rows of the set have one."""
    max_distance: Positive = 0.6
    """Largest identity distance between a photo and its anchor or a candidate; dlib's own rule for one person."""
    max_bits: Annotated[int, Range(ge=0, le=64)] = 6
    """Pictures are near-duplicates if their 64-bit perceptual hashes differ in at most this many bits, and ..."""
    min_correlation: Annotated[float, Range(ge=-1, le=1)] = 0.99
    """... small grey copies of them correlate at least this much."""


@dataclass(frozen=True)
class AnnotateConfig(Options):
    """Have pairs judged: by people on a local web page (--web), or by models behind an OpenAI-compatible endpoint (--endpoint)."""

    data: Annotated[Path, Positional("DATA")]
    """Folder of a pair set; judgements go to its annotations/, one file an annotator."""
    web: bool = False
    """Serve the page for people."""
    host: str = "127.0.0.1"
    """Address of the page. Anything but loopback lets everyone in the network judge and see the photos."""
    port: Port = 8765
    """Of the page; 0 takes a free one."""
    endpoint: str | None = None
    """Base URL of an OpenAI-compatible API, such as http://127.0.0.1:8000/v1. The photos are sent there."""
    model: tuple[str, ...] = ()
    """Models to ask there; each is an annotator of its own."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the API key; not set is fine for servers that need none."""
    pairs: Literal["unjudged", "all"] = "unjudged"
    """unjudged: pairs without a verdict in metadata.jsonl; all: also those with known truth."""
    limit: Annotated[int | None, Range(ge=1)] = None
    """At most this many pairs."""
    both_orders: bool = True
    """Ask for every pair twice, candidates swapped; models lean to one side."""
    max_side: Annotated[int, Range(ge=32)] = 1024
    """Pictures are made smaller to this side in pixels before they are sent."""
    temperature: NotNegative = 0.0
    """Of the models."""
    max_tokens: Annotated[int, Range(ge=16)] = 1024
    """Longest answer."""
    timeout: Positive = 120.0
    """Seconds for one answer."""
    retries: AtLeast0 = 4
    """Further tries after 408, 409, 429, 5xx, a timeout or a broken connection, with growing pauses."""
    workers: AtLeast1 = 4
    """Requests at once."""
    requests_per_minute: AtLeast0 = 0
    """Rate limit; 0 is none."""
    price_in: NotNegative = 0.0
    """Price of a million input tokens, in any currency."""
    price_out: NotNegative = 0.0
    """Price of a million output tokens."""
    max_cost: Annotated[float | None, Range(gt=0)] = None
    """Ask nothing that may bring the cost of this run above it, reckoned by the dearest answer so far; needs --price-in or --price-out."""
    max_unreadable: Share = 0.5
    """Stop if more than this share of a model's answers (from the 20th on) breaks the contract."""

    def check(self) -> None:
        """ConfigError: neither or both of --web and --endpoint, or options that they need."""
        if self.web == (self.endpoint is not None):
            raise ConfigError("annotate needs one of --web (people) and --endpoint URL --model NAME (models)")
        if self.endpoint is not None:
            if not self.endpoint.startswith(("http://", "https://")):
                raise ConfigError(f"--endpoint {self.endpoint}: must begin with http:// or https://, for example http://127.0.0.1:8000/v1")
            if not self.model or len(set(self.model)) != len(self.model):
                raise ConfigError("--model: name at least one model of the endpoint, each once")
        if self.max_cost is not None and not (self.price_in or self.price_out):
            raise ConfigError("--max-cost: needs --price-in or --price-out")


@dataclass(frozen=True)
class MergeConfig(Options):
    """Write what annotators agree on into the pairs: a senior's word, else the majority. Prints how far they agree."""

    data: Annotated[Path, Positional("DATA")]
    """Folder of a pair set."""
    files: tuple[Path, ...] = ()
    """Judgements of annotators who worked on a copy of the set; they are taken into its annotations/."""
    relabel: bool = False
    """Replace verdicts that are there already, known truth included; where the annotators are in conflict, the pair is open again."""
    dry_run: bool = False
    """Print only; write nothing."""


@dataclass(frozen=True)
class ExportConfig(Options):
    """Write a pair set as parquet with its pictures inside, for datasets.load_dataset and the hub; or such a data set as a folder again."""

    source: Annotated[str, Positional("DATA")]
    """Folder of a pair set; with --to-folder the folder or hub id of a parquet data set."""
    output_dir: Path = Path("pairs-parquet")
    """A folder that does not exist yet or is empty."""
    to_folder: bool = False
    """The other way: from parquet to a folder with metadata.jsonl and pictures."""


@dataclass(frozen=True)
class EmotionConfig(Options):
    """Turn a facial-expression data set, in the folders it was delivered in, into rows that align-vlm --task emotion reads."""

    dataset: Annotated[str, Positional("DATASET")]
    """disfa, bp4d, raf-au, faba, fer2013, affectnet, raf-db, expw, jsonl, or my_file.py:ADAPTER."""
    folder: Annotated[Path, Positional("FOLDER")]
    """Where the data set lies. Synthetic faces need none: align-vlm --task emotion without --data makes them."""
    output_dir: Annotated[Path, MAY_CHANGE] = Path("data/emotion")
    """Where train.jsonl, test.jsonl and images go. The same command again goes on where it was stopped."""
    copy_images: bool = False
    """Copy pictures to --output-dir; otherwise its images/ is a link to the data set. Frames and face crops are written to faces/."""
    split: Literal["official", "subject"] = "official"
    """official: the data set's own split, or the usual one, where there is one; subject: drawn, whole subjects at a time."""
    test_share: TestShare = 0.1
    """Share of the subjects (of the rows, where nobody is identified) in test.jsonl where a split is drawn."""
    every: AtLeast1 = 1
    """Take every n-th frame of a video; neighbouring frames hardly differ."""
    min_intensity: Annotated[int, Range(ge=1, le=5)] = 2
    """Action units count as present from this intensity on, where intensities are labelled (DISFA)."""
    count: AtLeast0 = 0
    """Most rows of each split, drawn at random; 0 takes all."""
    check_images: bool = False
    """Decode every picture, and set aside those that cannot be read."""
    max_unusable: Annotated[Share, MAY_CHANGE] = 0.1
    """Stop when more than this share of the rows (100 or more seen) had to be set aside for their pictures."""
    seed: AtLeast0 = 42
    """The drawn split and --count follow from it."""
    overwrite: Annotated[bool, MAY_CHANGE] = False
    """Replace what --output-dir holds, if this command made it."""

    def check(self) -> None:
        """ConfigError: the folder does not exist, is the one to be written, or there is no such data set."""
        if not self.folder.is_dir():
            raise ConfigError(f"FOLDER {self.folder}: no such folder; give the folder of the data set")
        if self.output_dir.resolve() == self.folder.resolve():
            raise ConfigError(f"--output-dir {self.output_dir}: is the data set's own folder; choose another")
        load_adapter(self.dataset)


@dataclass(frozen=True)
class MakeupConfig(Options):
    """Put makeup on faces: pictures with and without it, and rows with the true shapes and colours."""

    faces: Annotated[Path, Positional("FACES")]
    """Folder of face photos, searched with its subfolders; or the word embedded: synthetic people, no photos needed."""
    output_dir: Annotated[Path, MAY_CHANGE] = Path("data/makeup")
    """Where images/, train.jsonl and test.jsonl go. The same command again goes on where it was stopped."""
    count: Annotated[int | None, Range(ge=1, rule="must be at least 1 picture"), MAY_CHANGE] = None
    """Make at most so many pictures with makeup; every photo if not given, 200 for embedded."""
    looks_per_face: Annotated[int, Range(ge=1, le=1000)] = 1
    """Looks put on each face."""
    lips_only: bool = False
    """Lipstick alone, of the published shape, and the prompt of makeup-lips."""
    wide_colors: Share = 0.25
    """Share of colours drawn evenly from sRGB; the others are such as makeup is sold in."""
    bare_share: Annotated[float | None, Range(ge=0, le=1, rule="must be a share from 0 to 1")] = None
    """Share of the looks that are none: the bare picture, with an empty list as its truth. 0.15 if not given, none with --lips-only."""
    size: Annotated[int, Range(ge=64, le=4096)] = 512
    """Side of the square, aligned face crops in pixels."""
    crop: bool = True
    """Cut out and align the face; with --no-crop photos keep their frame and size, and --size is not used."""
    image_format: Literal["png", "jpg"] = "png"
    """png keeps every colour as rendered; jpg is a fifth of the size and moves colours a little."""
    min_face: Annotated[int, Range(ge=16)] = 96
    """Photos whose largest face is smaller than so many pixels are set aside."""
    test_share: TestShare = 0.05
    """Share of the photos whose rows go to test.jsonl; no person is in both files."""
    max_unusable: Annotated[Share, MAY_CHANGE] = 0.5
    """Stop when more than this share of the photos (20 or more seen) had to be set aside."""
    seed: AtLeast0 = 42
    """Looks and the split follow from it."""
    overwrite: Annotated[bool, MAY_CHANGE] = False
    """Replace what --output-dir holds, if this command made it."""

    def check(self) -> None:
        """ConfigError: the folder does not exist, --no-crop for embedded people, or bare faces with --lips-only."""
        if self.embedded and not self.crop:
            raise ConfigError("--no-crop: embedded people are made as crops; leave it out")
        if self.lips_only and self.bare_share:
            raise ConfigError(f"--bare-share {self.bare_share:g}: an answer with --lips-only is one colour, never none; leave out either")
        if not self.embedded and not self.faces.is_dir():
            raise ConfigError(f"FACES {self.faces}: no such folder; give a folder of photos, or the word embedded")

    @property
    def embedded(self) -> bool:
        """Whether the faces are synthetic people."""
        return str(self.faces) == "embedded"
