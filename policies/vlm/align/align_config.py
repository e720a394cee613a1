"""Every option of `align-vlm`. The docstring under a field is its help text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from portraitkit.config import Range, Share, load_config, read_recipe
from portraitkit.errors import ConfigError
from portraitkit.vlm.task import asked_briefly
from portraitkit.vlm.trainer_options import AtLeast0, AtLeast1, TrainerOptions

EMBEDDED_RECIPE = "tiny_vlm"


@dataclass(frozen=True)
class WhatToAlign:
    """What is aligned with what; its options stand before those of the trainers."""

    task: str = "area"
    """area, area-rotated, area-5-35, makeup-lips, makeup, emotion, preference, or my_file.py:TASK."""
    mode: Literal["paper", "fixed"] = "fixed"
    """paper: the published rewards, faults included; fixed: the faults repaired."""
    output_dir: str = ""
    """Run folder: configuration, probe, metrics, checkpoints, answers, summary.json, report.html and the model; runs/vlm-TASK if empty."""
    model: str = "embedded"
    """embedded (tiny Qwen2.5-VL, CPU), a local folder, or a hub id such as Qwen/Qwen2.5-VL-7B-Instruct."""
    adapter: str | None = None
    """A LoRA of an earlier run to go on from (a curriculum): trained on with the same --rank, or merged into the model with --rank 0."""
    data: str = "embedded"
    """embedded (synthetic, made while you wait) or a folder with train.jsonl and test.jsonl: image, the task's columns, perhaps target."""
    prompt: Literal["auto", "full", "brief"] = "auto"
    """full: the task's instruction; brief: what a model that knows it is asked; auto: brief for the embedded model and its offspring."""
    stages: tuple[Literal["sft", "grpo"], ...] = ("grpo",)
    """What is trained, in this order: supervised fine-tuning on the rows' targets, then GRPO."""
    max_unusable: Share = 0.1
    """Share of a folder's rows whose pictures may be unreadable: they are set aside in quarantine.jsonl; with more, nothing is trained."""
    train_rows: AtLeast0 = 1000
    """Training rows made or, of a folder, taken; 0 takes all that a folder has."""
    validation_rows: AtLeast1 = 48
    """Validation rows: what is looked at during training."""
    held_out_rows: AtLeast0 = 200
    """Held-out rows, looked at before and after training only."""
    samples: AtLeast1 = 8
    """Sampled answers a held-out row."""
    probe: bool = False
    """Probe the reward, write runs/.../probe.json and stop; every run does it before it trains."""
    probe_rows: Annotated[int, Range(ge=2, rule="must be 2 or more")] = 32
    """Training rows probed."""
    reward_file: str | None = None
    """my_file.py:compute_score, a reward function in verl's form, in place of the task's own reward."""
    export: Literal["none", "verl", "easyr1"] = "none"
    """Write the rows, the reward and a launch command for that trainer to --output-dir (exports/NAME-TASK if empty) and stop."""


@dataclass(frozen=True)
class AlignVlmConfig(TrainerOptions, WhatToAlign):
    """Align a vision-language model with a task's verifiable rewards, by TRL's SFT and GRPO trainers.

    A real model's defaults are those of VLM Area (tsnewnami/vlm-area): 1,000 rows, 250 updates of 4 prompts, 512 tokens. The embedded
    model, and what was trained from it, start from the recipe tiny_vlm.
    """

    max_train_steps: AtLeast1 = 250
    """GRPO updates."""
    prompts_per_step: AtLeast1 = 4
    """Groups in an update, on each device."""
    learning_rate: Annotated[float | None, Range(gt=0, rule="must be above 0")] = None
    """Of GRPO; if not given, 1e-6 for all weights (Facial-R1's script) and 1e-5 for a LoRA (MakeupExtractor), or for the embedded model
    1e-4, and 0.1 for --weights last-norm."""
    max_tokens: AtLeast1 = 512
    """Most tokens of an answer."""

    def __post_init__(self) -> None:
        """Refuse impossible values before any model is loaded.

        Raises:
            ConfigError: a value is out of range, or two options contradict each other.
        """
        super().__post_init__()
        if self.data == "embedded" and (self.train_rows < 1 or self.held_out_rows < 2):
            raise ConfigError(
                f"--train-rows {self.train_rows} --held-out-rows {self.held_out_rows}: the embedded data need 1 and 2 or more; "
                "0 takes all that a folder of --data has"
            )
        if self.last_norm and not self.freeze_vision and "grpo" in self.stages:
            raise ConfigError("--no-freeze-vision: --weights last-norm trains nothing of the vision tower; give --weights all")
        if not self.stages:
            raise ConfigError("--stages: name sft, grpo or both")
        if self.push_to_hub is not None and (self.export != "none" or self.probe):
            raise ConfigError("--push-to-hub: nothing is trained with --export or --probe; leave one of them out")
        if self.export != "none" and self.reward_file is not None:
            raise ConfigError("--reward-file: --export writes the task's own reward; leave one of them out")

    @property
    def usual_rate(self) -> float:
        """Learning rate of GRPO for all weights or a LoRA, if none is given."""
        return usual_rate(self.model, self.rank)

    @property
    def folder(self) -> str:
        """The run folder."""
        name = self.task.rpartition("/")[2].replace(".py:", "-")
        return self.output_dir or (f"runs/vlm-{name}" if self.export == "none" else f"exports/{self.export}-{name}")


def usual_rate(model: str, rank: int) -> float:
    """GRPO's learning rate if none is given: for 7B models those published, of a LoRA (MakeupExtractor) and of all weights (Facial-R1)."""
    if asked_briefly(model):
        return AlignVlmConfig.USUAL_RATE
    return 1e-5 if rank else 1e-6


def load_align_config(argv: list[str]) -> AlignVlmConfig:
    """The configuration of `align-vlm`; beneath recipe and options lies `tiny_vlm` for the embedded model and what was trained from it.

    Raises:
        ConfigError: see `portraitkit.config.load_config`.
    """

    def with_tiny(values: dict[str, Any], typed: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        model = next(iter(typed.get("model", ())), values.get("model", "embedded"))
        tiny = read_recipe(EMBEDDED_RECIPE, AlignVlmConfig) if asked_briefly(model) else {}
        return {**tiny, "model": model, **values}

    return load_config(AlignVlmConfig, argv, prog="align-vlm", example="--task area", revise=with_tiny)
