"""The options that every command with TRL's trainers has. The docstring under a field is its help text, that of a class a title."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from portraitkit.config import MAY_CHANGE, AtLeast0, AtLeast1, NotNegative, Options, Positive, Range, lay_beneath
from portraitkit.errors import ConfigError
from portraitkit.runs.options import CheckpointOptions, PlanOptions

MaxPixels = Annotated[int | None, Range(ge=784, rule="a picture needs 28 x 28 = 784 pixels or more")]


@dataclass(frozen=True, kw_only=True)
class TuningOptions(Options):
    """LoRA and memory."""

    rank: AtLeast0 = 0
    """Rank of a LoRA; 0 trains weights themselves."""
    lora_alpha: AtLeast1 = 32
    """Scale of the LoRA."""
    lora_dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0
    """Of the LoRA's input."""
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Modules of the language part that get a LoRA."""
    gradient_checkpointing: bool = False
    """Save memory by computing activations twice."""
    deepspeed: str | None = None
    """For accelerate launch or torchrun: zero2, zero3, or a DeepSpeed configuration (JSON)."""


@dataclass(frozen=True)
class MachineOptions(Options):
    """Machine."""

    device: str = "cuda"
    """cpu, cuda ..."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the weights."""
    seed: AtLeast0 = 0
    """Everything random follows from it, except the embedded held-out rows, which are the same for all."""
    max_pixels: MaxPixels = None
    """Largest picture in pixels; larger ones are scaled down before they become tokens."""
    generation_batch: AtLeast1 = 64
    """Answers generated at once in probe and evaluation."""


@dataclass(frozen=True)
class GrpoOptions(Options):
    """GRPO."""

    max_train_steps: AtLeast1 = 250
    """Updates; 250 of 4 prompts are VLM Area's."""
    prompts_per_step: AtLeast1 = 4
    """Groups in an update, on each device."""
    group_size: Annotated[int, Range(ge=2, rule="a group needs at least 2 answers to be compared; try 8")] = 8
    """Answers to one prompt that are compared with each other."""
    accumulation_steps: AtLeast1 = 1
    """Parts that an update's answers are split into; must divide prompts times group."""
    weights: Literal["all", "last-norm"] = "all"
    """Weights of the language part that are trained where there is no LoRA: all, or the gains of its last norm alone (LN tuning)."""
    freeze_vision: bool = True
    """Train nothing of the vision tower, and make sure of it; a LoRA of --rank leaves it alone anyway."""
    learning_rate: Annotated[float | None, Range(gt=0, rule="must be above 0")] = None
    """If not given: 1e-6 for all weights (Facial-R1's script, UnifiedReward-Think), 1e-5 for a LoRA (MakeupExtractor), 0.1 for --weights
    last-norm; all weights or a LoRA of the embedded model take more."""
    lr_scheduler: str = "linear"
    """As transformers names it: constant, linear, cosine, constant_with_warmup ..."""
    warmup_steps: AtLeast0 = 4
    """Updates in which the learning rate rises from 0."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""
    beta: NotNegative = 0.0
    """Weight of the KL to the reference model; 0 needs no reference model."""
    loss_type: str = "dr_grpo"
    """TRL's: grpo, dr_grpo, dapo, bnpo, cispo, sapo, luspo, vespo ..."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide advantages by the standard deviation of the group, of the batch, or not."""
    aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """Add the task's parts and then normalise in the group, or normalise each part first (GDPO)."""
    reward_weights: tuple[float, ...] = ()
    """One weight for each part of the task's reward, that of a judge last; 1 each, .2 for the judge, if empty."""
    temperature: Positive = 1.0
    """Of the sampling, in training and wherever else answers are sampled."""
    top_p: Annotated[float, Range(gt=0, le=1)] = 1.0
    """Nucleus of the sampling."""
    max_tokens: AtLeast1 = 512
    """Most tokens of an answer."""
    validation_steps: AtLeast0 = 10
    """Updates between two validations."""
    trl: tuple[str, ...] = ()
    """Any other argument of trl.GRPOConfig as name=value, for example epsilon_high=0.28 use_vllm=true vllm_mode=colocate."""


@dataclass(frozen=True)
class SftOptions(Options):
    """Supervised fine-tuning."""

    sft_steps: AtLeast1 = 200
    """Updates of the sft stage."""
    sft_batch: AtLeast1 = 32
    """Rows in one of them, on each device."""
    sft_learning_rate: Positive = 1e-4
    """Of the sft stage, cosine with 5 % warm-up."""


@dataclass(frozen=True)
class VlmPlanOptions(PlanOptions):
    """Dry run."""

    plan_sharding: Annotated[Literal["none", "zero2", "zero3"], MAY_CHANGE] = "none"
    """How the devices share the run, where --deepspeed does not say so."""


@dataclass(frozen=True)
class TrainerOptions(MachineOptions, SftOptions, GrpoOptions, TuningOptions, CheckpointOptions, VlmPlanOptions):
    """How a vision-language model is trained; commands add what they train it to do."""

    TINY_RECIPE: ClassVar[str] = ""
    """Recipe that lies beneath all that is given, where the embedded model or its offspring is trained."""
    TINY_RATE: ClassVar[float] = 1e-4
    """Learning rate of GRPO for all weights or a LoRA of these models, if none is given."""

    def check(self) -> None:
        """Refuse parts of unequal size; ConfigError: the parts do not divide an update's answers."""
        if self.prompts_per_step * self.group_size % self.accumulation_steps:
            raise ConfigError(
                f"--accumulation-steps {self.accumulation_steps}: must divide {self.prompts_per_step} prompts x {self.group_size} answers"
            )

    @classmethod
    def is_tiny(cls, config: Mapping[str, Any]) -> bool:
        """Whether a configuration trains the embedded model, or what was trained from it."""
        return False

    @classmethod
    def revise(cls, values: dict[str, Any], typed: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Lay the recipe of the embedded model beneath, where that model or its offspring is trained."""
        return lay_beneath(cls.TINY_RECIPE, cls, values) if cls.is_tiny(cls.chosen(values, typed)) else values

    @classmethod
    def rate_of(cls, config: Mapping[str, Any]) -> float:
        """Learning rate of GRPO: the one given, or what suits model and weights, the gains of a norm being few and near 1. `config` has
        the options by name, as a run's config.json."""
        if config["learning_rate"] is not None:
            return config["learning_rate"]
        if config["weights"] == "last-norm" and not config["rank"]:
            return 0.1
        return cls.TINY_RATE if cls.is_tiny(config) else 1e-5 if config["rank"] else 1e-6

    @property
    def rate(self) -> float:
        """Learning rate of GRPO."""
        return self.rate_of(vars(self))

    @property
    def last_norm(self) -> bool:
        """Whether GRPO trains the gains of the last norm alone."""
        return self.weights == "last-norm" and self.rank == 0
