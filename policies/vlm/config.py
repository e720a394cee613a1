"""Options of `extract-makeup`, `score-completions` and `synthesize-emotion`. The docstring under a field is its help text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from portraitkit.config import MAY_CHANGE, AtLeast0, AtLeast1, Options, Positional, Positive, Range
from portraitkit.errors import ConfigError
from portraitkit.vlm.trainer_options import MaxPixels, TuningOptions


@dataclass(frozen=True)
class ExtractConfig(Options):
    """Print the makeup that a face wears as JSON, and show it on a second face."""

    photo: Annotated[Path, Positional("PHOTO")]
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
    size: Annotated[int | None, Range(ge=64, le=4096, rule="must be from 64 to 4096 pixels")] = None
    """Side of the aligned face that the model is shown, in pixels; 128 for a model asked briefly, 512 for others."""
    min_face: Annotated[int, Range(ge=16, rule="must be at least 16 pixels")] = 64
    """Faces smaller than so many pixels do not count."""
    max_tokens: AtLeast1 = 256
    """Most tokens of an answer."""
    max_pixels: MaxPixels = None
    """Largest picture in pixels; larger ones are scaled down before they become tokens."""
    device: str = "cpu"
    """cpu, cuda ..."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights."""
    overwrite: bool = False
    """Replace the files that --output-dir holds."""

    @property
    def folder(self) -> Path:
        """Where the files go."""
        return self.output_dir or Path("runs/extract-makeup") / self.photo.stem


@dataclass(frozen=True)
class ScoreConfig(Options):
    """Score completions of a task with its verifiable rewards, without a model: one JSON line a row, on stdout."""

    rows: Annotated[Path, Positional("ROWS.jsonl")]
    """One JSON object a line: a string completion, and the task's truth (area; solution; AUs and labels; verdict). - reads stdin."""
    task: str = "area"
    """area, area-rotated, area-5-35, makeup-lips, makeup, emotion, preference, or my_file.py:TASK."""
    mode: Literal["paper", "fixed"] = "fixed"
    """paper: the published rewards, faults included; fixed: the faults repaired."""
    metrics: Path | None = None
    """Write what the field reports of all rows together to this JSON file: the task's metrics and the mean reward."""
    au_list: str = "all"
    """emotion: units that F1 is taken over: all, disfa, bp4d, raf-au, faba, emola-disfa, emola-bp4d, emola-faba, or 1,2,4 ..."""
    group_by: str = ""
    """emotion: a column, or a key of meta_info, for whose values the figures are given one by one, too."""
    judge_url: str = ""
    """emotion: an OpenAI-compatible endpoint, as http://localhost:8000/v1, that scores each text against its description from 1 to 10."""
    judge_model: str = ""
    """The judge's name at that endpoint."""
    judge_key_env: str = ""
    """Environment variable that holds the endpoint's key, if it needs one."""

    def check(self) -> None:
        """ConfigError for an option of the emotion figures without --metrics or with another task: it would do nothing."""
        for name, default in (("au_list", "all"), ("group_by", ""), ("judge_url", "")):
            value = getattr(self, name)
            if value != default and (self.metrics is None or self.task != "emotion"):
                raise ConfigError(f"--{name.replace('_', '-')} {value}: only with --task emotion and --metrics FILE.json")
        if bool(self.judge_url) != bool(self.judge_model):
            raise ConfigError("--judge-url and --judge-model: give both, or none")


WRITERS = "give --model FOLDER or a hub id, or --endpoint URL with --endpoint-model NAME, of a model that reasons about pictures"


@dataclass(frozen=True)
class WhatToSynthesize(Options):
    """What is written, by whom and where to."""

    rows: Annotated[Path, Positional("ROWS")]
    """A JSONL file of labelled faces, or the folder that make-preferences emotion wrote (its train.jsonl)."""
    output_dir: Annotated[Path, MAY_CHANGE] = Path("data/emotion-synthesis")
    """Where train.jsonl (accepted), rejected.jsonl, test.jsonl and summary.json go. The same command again goes on where it was stopped."""
    model: str = ""
    """The local model that writes, a folder or a hub id; or give --endpoint. The embedded model cannot: it knows short answers only."""
    endpoint: str = ""
    """An OpenAI-compatible endpoint that writes, as http://localhost:8000/v1."""
    endpoint_model: str = ""
    """The model's name at that endpoint."""
    key_env: str = ""
    """Environment variable that holds the endpoint's key, if it needs one."""
    retries: AtLeast0 = 5
    """Further attempts at a row whose answer was not accepted, each with the list of its errors."""
    need: Literal["both", "any"] = "both"
    """both: rows need action units and an emotion, or they are rejected unasked; any: what a row labels is checked, the rest is free."""
    count: Annotated[AtLeast0, MAY_CHANGE] = 0
    """Most rows to be worked on, the first ones of the file; 0 takes all."""
    max_tokens: AtLeast1 = 1024
    """Most tokens of an answer."""
    batch_size: Annotated[AtLeast1, MAY_CHANGE] = 16
    """Rows worked on at once."""
    timeout: Annotated[Positive, MAY_CHANGE] = 120.0
    """Seconds for one request."""
    request_retries: Annotated[AtLeast0, MAY_CHANGE] = 3
    """Further tries of a request that failed for a reason that may pass; the row stays open if they fail, too."""
    requests_per_minute: Annotated[AtLeast0, MAY_CHANGE] = 0
    """Most requests a minute; 0 = no limit."""
    workers: Annotated[AtLeast1, MAY_CHANGE] = 4
    """Requests under way at once."""
    max_failures: Annotated[AtLeast1, MAY_CHANGE] = 20
    """Stop after so many rows in a row that the endpoint did not answer."""
    device: str = "cpu"
    """Of the local model: cpu, cuda ..."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the local model's weights."""
    max_pixels: MaxPixels = None
    """Largest picture in pixels for the local model."""
    rounds: Annotated[AtLeast1, MAY_CHANGE] = 1
    """Above 1, the local model is fine-tuned on what was accepted (stage 1) and writes again about the rows still rejected, so often."""
    sft_steps: AtLeast1 = 200
    """Updates of each fine-tuning between rounds."""
    sft_batch: AtLeast1 = 8
    """Rows in one of them."""
    sft_learning_rate: Positive = 2e-5
    """Of the fine-tuning."""
    overwrite: Annotated[bool, MAY_CHANGE] = False
    """Replace what --output-dir holds, if this command made it."""


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig(WhatToSynthesize, TuningOptions):
    """Have a model write reasoned answers about faces whose truth is known, and keep those that agree with it exactly."""

    deepspeed: str | None = None
    """zero2, zero3, or a DeepSpeed configuration (JSON): each fine-tuning runs on all GPUs of this machine, by torchrun."""

    def check(self) -> None:
        """Refuse options that contradict each other, before any model is loaded: ConfigError for the first."""
        if bool(self.endpoint) != bool(self.endpoint_model):
            raise ConfigError("--endpoint and --endpoint-model: give both, or none to use --model")
        if not self.endpoint and not self.model:
            raise ConfigError(f"--model: none is the default; {WRITERS}")
        if self.endpoint and self.rounds > 1:
            raise ConfigError("--rounds: a model behind an endpoint cannot be fine-tuned; use --model, or leave --rounds out")
        if not self.path.is_file():
            raise ConfigError(f"ROWS {self.rows}: no such file; give a JSONL file, or a folder with train.jsonl")

    @property
    def path(self) -> Path:
        """The file of rows."""
        return self.rows / "train.jsonl" if self.rows.is_dir() else self.rows
