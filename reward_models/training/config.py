"""Every option of `train-reward-model`. The docstring under a field is its help text."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from portraitkit.config import MAY_CHANGE, AtLeast0, AtLeast1, NotNegative, Options, Positive, Range, Share
from portraitkit.errors import ConfigError
from portraitkit.files.jsonl import read_json
from portraitkit.vlm.trainer_options import TrainerOptions

STAGES: tuple[str, ...] = ("sft", "reject", "grpo")


@dataclass(frozen=True)
class WhatToJudge(Options):
    """What is judged, and where."""

    model: str = "embedded"
    """embedded (the tiny Qwen2.5-VL judge, CPU), a local folder, or a hub id such as Qwen/Qwen2.5-VL-7B-Instruct."""
    data: str = "embedded"
    """embedded (synthetic pairs, made while you wait), or a pair set of make-preferences; with --benchmark, that benchmark's folder."""
    output_dir: Annotated[str, MAY_CHANGE] = ""
    """Run folder: stages, answers, summary.json, report.html and the judge in model; runs/reward-model if empty."""
    stages: tuple[Literal["sft", "reject", "grpo"], ...] = ("sft", "reject", "grpo")
    """Any of them, in this order. A later stage alone, in a folder whose earlier ones are finished, is done again from their model."""
    shown: Literal["auto", "as-taken", "beside-difference", "spots-and-difference"] = "auto"
    """as-taken: photo and both retouches; beside-difference: each retouch above its difference from the photo; spots-and-difference: what
    stands out in each above that difference; auto: what the model's folder says (judge.json), else as-taken."""
    form: Literal["auto", "brief", "full"] = "auto"
    """full: reasoning in words, then the answer; brief: numbers alone, for a tiny model, with the recipe tiny beneath; auto: like
    --shown."""
    coherence: str = "deterministic"
    """Check of the reasoning: deterministic (words, scores and choice agree), or nli:PATH, an NLI model's folder or hub id."""
    consistency_weight: Annotated[
        float, Range(ge=0, le=1, rule="must be a share from 0 to 1: above, agreeing with itself would earn more than being right")
    ] = 0.0
    """GRPO: bonus for agreeing with the judge's own greedy answer to the other order, asked once before the stage."""
    evaluate: bool = False
    """Only evaluate --model on the held-out pairs."""
    benchmark: Literal["none", "editreward-bench-tiger", "editreward-bench-editscore", "mmrb2-edit", "genai-bench"] = "none"
    """With --evaluate: the public benchmark whose files --data holds."""
    benchmark_rows: AtLeast0 = 0
    """Most pairs of the public benchmark, from its beginning; 0 takes all."""


@dataclass(frozen=True)
class StageOptions(Options):
    """Pairs and stages."""

    train_pairs: AtLeast0 = 0
    """Training pairs; 0 takes all that a folder has (of the embedded ones, which are made, 500). GRPO looks among all of them for what is
    still wrong."""
    sft_pairs: AtLeast0 = 2000
    """The first of them are imitated in the sft stage, in both orders; 0: all. 2000 of 10,000 are BeautyGRPO's."""
    reject_pairs: AtLeast0 = 0
    """Of the others (of all, where none are left), trajectories are sampled from so many; 0: all, as BeautyGRPO does."""
    reject_samples: AtLeast1 = 4
    """Trajectories sampled for each of them in each order."""
    reject_dimensions: Share = 0.8
    """A trajectory is kept if its overall choice is right, no dimension's winner is the loser, at least this share of the known
    dimensions is right, ties included, and its reasoning is coherent (an NLI model: .5 or more)."""
    reject_keep: AtLeast1 = 2
    """Most different trajectories kept of one pair in one order, the best first."""
    reject_steps: AtLeast1 = 500
    """Updates of supervised fine-tuning on what was kept; --sft-batch and --sft-learning-rate hold here, too."""
    grpo_pairs: Literal["overall", "dimensions", "all"] = "overall"
    """overall: GRPO trains on the pairs whose overall verdict is still wrong in one order or the other; dimensions: or any other; all."""
    validation_pairs: AtLeast1 = 100
    """Validation pairs, in both orders: looked at during training; tie thresholds are fitted on them."""
    held_out_pairs: AtLeast0 = 0
    """Held-out pairs, in both orders: people whom no training pair shows; 0 takes all that a folder has (of the embedded ones, 250)."""
    hack_cases: AtLeast0 = 24
    """Held-out synthetic people whose honest retouch must win against over-smoothed, sharpened ... versions of it; of half as many, 16
    rollouts of the embedded retoucher each are ranked, and clean faces judged; 0: none."""
    stability_pairs: AtLeast0 = 100
    """Held-out pairs judged again after JPEG and after resizing, half of them with cues and their controls, too; 0: none."""
    blind: bool = True
    """Train a blind copy by the same SFT, its pictures exchanged at random: what can be earned without looking."""


@dataclass(frozen=True)
class RewardModelConfig(WhatToJudge, StageOptions, TrainerOptions):
    """Train and evaluate the five-dimension judge: SFT, rejection sampling and GRPO, by TRL's trainers.

    Defaults follow the model: --help --model HUB_ID shows those of a real one, which are UnifiedReward-Think's (arXiv 2505.03318) and
    BeautyGRPO's where they published them, else ours. The embedded model and what was trained from it have the recipe tiny beneath what is
    given.
    """

    TINY_RECIPE: ClassVar[str] = "tiny"
    TINY_RATE: ClassVar[float] = 3e-5
    generation_batch: AtLeast1 = 16
    max_train_steps: AtLeast1 = 500
    """Updates, on the training pairs whose verdict is still wrong or changes with the order, as UnifiedReward-Think does it; the number is
    ours."""
    lr_scheduler: str = "constant_with_warmup"
    warmup_steps: AtLeast0 = 20
    beta: NotNegative = 0.04
    """Weight of the KL to the reference model; 0 needs no reference model. 0.04 is UnifiedReward-Think's."""
    loss_type: str = "grpo"
    max_tokens: AtLeast1 = 1024
    sft_steps: AtLeast1 = 750
    """Updates of the sft stage: with --sft-batch 16 and one process UnifiedReward-Think's 3 epochs of 2000 pairs in both orders."""
    sft_batch: AtLeast1 = 16
    """Rows in one of them, on each device; the two orders of a pair are two rows."""
    sft_learning_rate: Positive = 2.5e-6
    """Of the sft and reject stages, cosine with 5 % warm-up. 2.5e-6, for all weights, is UnifiedReward-Think's; give a LoRA ten times as
    much (ours)."""

    def check(self) -> None:
        """Refuse options that contradict each other, before any model is loaded: ConfigError for the first."""
        own = self.data == "embedded"
        if own and 1 in (self.train_pairs, self.held_out_pairs):
            raise ConfigError(
                f"--train-pairs {self.train_pairs} --held-out-pairs {self.held_out_pairs}: the embedded data need 2 or more of both"
            )
        if not self.stages or list(self.stages) != [name for name in STAGES if name in self.stages]:
            raise ConfigError(f"--stages {' '.join(self.stages)}: must be some of sft reject grpo, each once, in this order")
        kind, colon, source = self.coherence.partition(":")
        if self.coherence != "deterministic" and not (kind == "nli" and colon and source):
            raise ConfigError(f"--coherence {self.coherence}: must be deterministic or nli:PATH, PATH a folder or hub id of an NLI model")
        if kind == "nli" and self.form == "brief":
            raise ConfigError(f"--coherence {self.coherence}: the brief form has no words to judge; use --form full")
        if self.benchmark != "none" and (not self.evaluate or own):
            raise ConfigError(f"--benchmark {self.benchmark}: needs --evaluate and --data FOLDER with the benchmark's files")
        if self.evaluate and self.push_to_hub is not None:
            raise ConfigError("--push-to-hub: an evaluation trains nothing; leave one of the two out")
        if self.evaluate and self.resume_from_checkpoint is not None:
            raise ConfigError("--resume-from-checkpoint: an evaluation has none; use --overwrite")

    @classmethod
    def is_tiny(cls, config: Mapping[str, Any]) -> bool:
        """Whether the judge is the embedded one, or answers in the brief form, as that one's offspring does."""
        if config["form"] != "auto" or config["model"] == "embedded":
            return config["form"] == "brief" or config["model"] == "embedded"
        try:
            return read_json(Path(config["model"]) / "judge.json").get("form") == "brief"
        except (OSError, ValueError):
            return False  # a hub id; what is wrong with a folder, loading it says

    @property
    def source(self) -> str:
        """What the model and its processor are loaded from."""
        from reward_models.judge.settings import source_of

        return source_of(self.model)

    @property
    def folder(self) -> str:
        """The run folder."""
        name = f"reward-model-{self.benchmark}" if self.benchmark != "none" else "reward-model-evaluation"
        return self.output_dir or f"runs/{name if self.evaluate else 'reward-model'}"

    @property
    def counts(self) -> dict[str, int]:
        """Pairs of each split; 0 takes all that a folder has."""
        made = {"train": 500, "held_out": 250} if self.data == "embedded" else {"train": 0, "held_out": 0}
        train, held_out = self.train_pairs or made["train"], self.held_out_pairs or made["held_out"]
        return {"train": train, "validation": self.validation_pairs, "held_out": held_out}


def needed_by(config: RewardModelConfig) -> dict[str, str | None]:
    """Options and the files or folders that they name, which `--overwrite` must not delete."""
    return {"--model": config.model, "--data": config.data, "--coherence": config.coherence.partition(":")[2]}
