"""Every option of `align-vlm`. The docstring under a field is its help text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from portraitkit.config import MAY_CHANGE, AtLeast0, AtLeast1, Options, Range, Share
from portraitkit.errors import ConfigError
from portraitkit.vlm.task import asked_briefly
from portraitkit.vlm.trainer_options import TrainerOptions


@dataclass(frozen=True)
class WhatToAlign(Options):
    """What is aligned with what, and where."""

    task: str = "area"
    """area, area-rotated, area-5-35, makeup-lips, makeup, emotion, preference, or my_file.py:TASK."""
    mode: Literal["paper", "fixed"] = "fixed"
    """paper: the published rewards, faults included; fixed: the faults repaired."""
    output_dir: Annotated[str, MAY_CHANGE] = ""
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
    max_unusable: Annotated[Share, MAY_CHANGE] = 0.1
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
    reward: str | None = None
    """A judge beside the task's rewards: judge:SOURCE, which is embedded, a folder, a hub id, vllm:ID or http://host:port/v1. Makeup: it
    compares renderings of a group's answers (with :score behind SOURCE: each with the photo). Emotion: it rates the reasoning; embedded is
    no judge there but a check of the action units named. Other tasks take none (docs/align_vlm.md)."""
    reward_file: str | None = None
    """my_file.py:compute_score, a reward function in verl's form, in place of the task's own reward."""
    export: Annotated[Literal["none", "verl", "easyr1"], MAY_CHANGE] = "none"
    """Write the rows, the reward and a launch command for that trainer to --output-dir (exports/NAME-TASK if empty) and stop."""


@dataclass(frozen=True)
class AlignVlmConfig(WhatToAlign, TrainerOptions):
    """Align a vision-language model with a task's verifiable rewards, by TRL's SFT and GRPO trainers.

    Defaults follow the model: --help --model HUB_ID shows those of a real one, with rows, updates, prompts and tokens of VLM Area
    (tsnewnami/vlm-area). The embedded model and what was trained from it have the recipe tiny_vlm beneath what is given.
    """

    TINY_RECIPE: ClassVar[str] = "tiny_vlm"

    def check(self) -> None:
        """Refuse options that contradict each other, before any model is loaded: ConfigError for the first."""
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
        for option, value in (("reward", self.reward), ("reward-file", self.reward_file)):
            if self.export != "none" and value is not None:
                raise ConfigError(f"--{option}: --export writes the task's own reward; leave one of them out")
        if self.reward is not None and self.reward_file is not None:
            raise ConfigError("--reward: a judge stands beside the task's own reward, which --reward-file replaces; leave one of them out")
        if self.reward is not None and "grpo" not in self.stages:
            raise ConfigError(f"--reward {self.reward}: only grpo has rewards; add it to --stages, or leave --reward out")

    @classmethod
    def is_tiny(cls, config: Mapping[str, Any]) -> bool:
        """Whether the model knows its tasks by their brief prompts, as the embedded one and its offspring do."""
        return asked_briefly(config["model"])

    @property
    def folder(self) -> str:
        """The run folder."""
        name = self.task.rpartition("/")[2].replace(".py:", "-")
        return self.output_dir or (f"runs/vlm-{name}" if self.export == "none" else f"exports/{self.export}-{name}")
