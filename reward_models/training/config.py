"""Every option of `train-reward-model`. The docstring under a field is its help text."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from portraitkit.config import Range, Share
from portraitkit.errors import ConfigError
from portraitkit.vlm.trainer_options import AtLeast0, AtLeast1, Positive, TrainerOptions

STAGES: tuple[str, ...] = ("sft", "reject", "grpo")


@dataclass(frozen=True)
class WhatToJudge:
    """What the judge learns from; its options stand before those of the trainers."""

    model: str = "embedded"
    """embedded (the tiny Qwen2.5-VL judge, CPU), a local folder, or a hub id such as Qwen/Qwen2.5-VL-7B-Instruct."""
    data: str = "embedded"
    """embedded (synthetic pairs, made while you wait), or a pair set of make-preferences; with --benchmark, that benchmark's folder."""
    output_dir: str = ""
    """Run folder: stages, answers, summary.json, report.html and the judge in model; runs/reward-model if empty."""
    stages: tuple[Literal["sft", "reject", "grpo"], ...] = ("sft", "reject", "grpo")
    """Any of them, in this order. A later stage alone, in a folder whose earlier ones are finished, is done again from their model."""
    shown: Literal["auto", "beside-difference", "as-taken"] = "auto"
    """as-taken: photo and both retouches; beside-difference: each retouch above its difference from the photo; auto: what the model's
    folder says (judge.json), else beside-difference for the embedded model and as-taken for others."""
    form: Literal["auto", "brief", "full"] = "auto"
    """full: reasoning in words, then the answer; brief: numbers alone, for a tiny model; auto: like --shown."""
    coherence: str = "deterministic"
    """Check of the reasoning: deterministic (words, scores and choice agree), or nli:PATH, an NLI model's folder or hub id."""
    consistency_weight: Annotated[
        float, Range(ge=0, le=1, rule="must be a share from 0 to 1: above, agreeing with itself would earn more than being right")
    ] = 0.0
    """GRPO: bonus for agreeing with the judge's own greedy answer to the other order, asked once before the stage."""

    train_pairs: AtLeast0 = 500
    """Training pairs; 0 takes all that a folder has. GRPO looks among all of them for what is still wrong."""
    sft_pairs: AtLeast0 = 300
    """The first of them are imitated in the sft stage, in both orders; 0: all."""
    reject_pairs: AtLeast0 = 200
    """Of the others (of all, where none are left), trajectories are sampled from so many; 0: all."""
    reject_samples: AtLeast1 = 4
    """Trajectories sampled for each of them in each order."""
    reject_dimensions: Share = 0.8
    """A trajectory is kept if its overall choice is right, no dimension's winner is the loser, at least this share of the known
    dimensions is right, ties included, and its reasoning is coherent (an NLI model: .5 or more)."""
    reject_keep: AtLeast1 = 2
    """Most different trajectories kept of one pair in one order, the best first."""
    reject_steps: AtLeast1 = 30
    """Updates of supervised fine-tuning on what was kept; --sft-batch and --sft-learning-rate hold here, too."""
    grpo_pairs: Literal["overall", "dimensions", "all"] = "overall"
    """overall: GRPO trains on the pairs whose overall verdict is still wrong in one order or the other; dimensions: or any other; all."""
    validation_pairs: AtLeast1 = 60
    """Validation pairs, in both orders: looked at during training; tie thresholds are fitted on them."""
    held_out_pairs: AtLeast0 = 250
    """Held-out pairs, in both orders: people whom no training pair shows."""
    hack_cases: AtLeast0 = 24
    """Held-out synthetic people whose honest retouch must win against over-smoothed, sharpened ... versions of it; 0: none."""
    stability_pairs: AtLeast0 = 60
    """Held-out pairs judged again after JPEG and after resizing; 0: none."""
    blind: bool = True
    """Train a blind copy by the same SFT, its pictures exchanged at random: what can be earned without looking."""
    evaluate: bool = False
    """Only evaluate --model on the held-out pairs."""
    benchmark: Literal["none", "editreward-bench-tiger", "editreward-bench-editscore", "mmrb2-edit", "genai-bench"] = "none"
    """With --evaluate: the public benchmark whose files --data holds."""
    benchmark_rows: AtLeast0 = 0
    """Most pairs of the public benchmark, from its beginning; 0 takes all."""


@dataclass(frozen=True)
class RewardModelConfig(TrainerOptions, WhatToJudge):
    """Train and evaluate the five-dimension judge: SFT, rejection sampling and GRPO, by TRL's trainers."""

    max_train_steps: AtLeast1 = 30
    """GRPO updates, on the training pairs whose verdict is still wrong or changes with the order."""
    prompts_per_step: AtLeast1 = 8
    """Groups in an update, on each device."""
    USUAL_RATE: ClassVar[float] = 1e-5
    learning_rate: Annotated[float | None, Range(gt=0, rule="must be above 0")] = None
    """Of GRPO; if not given, 1e-5, and 0.1 for --weights last-norm."""
    max_tokens: AtLeast1 = 64
    """Most tokens of an answer."""
    sft_steps: AtLeast1 = 60
    """Updates of the sft stage."""
    sft_batch: AtLeast1 = 32
    """Rows in one of them, on each device; the two orders of a pair are two rows."""
    sft_learning_rate: Positive = 3e-5
    """Of the sft and reject stages, cosine with 5 % warm-up."""

    def __post_init__(self) -> None:
        """Refuse impossible values before any model is loaded.

        Raises:
            ConfigError: a value is out of range, or two options contradict each other.
        """
        super().__post_init__()
        own = self.data == "embedded"
        if own and (self.train_pairs < 2 or self.held_out_pairs < 2):
            raise ConfigError(
                f"--train-pairs {self.train_pairs} --held-out-pairs {self.held_out_pairs}: the embedded data need 2 or more of both; "
                "0 takes all that a folder of --data has"
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
        """Pairs of each split."""
        return {"train": self.train_pairs, "validation": self.validation_pairs, "held_out": self.held_out_pairs}


def needed_by(config: RewardModelConfig) -> dict[str, str | None]:
    """Options and the files or folders that they name, which `--overwrite` must not delete."""
    return {"--model": config.model, "--data": config.data, "--coherence": config.coherence.partition(":")[2]}
