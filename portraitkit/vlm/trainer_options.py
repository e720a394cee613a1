"""The options that every command with TRL's trainers has. The docstring under a field is its help text."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from portraitkit.config import Options, Range
from portraitkit.errors import ConfigError
from portraitkit.hub import check_repo_name
from portraitkit.memory.plan import check_planning

AtLeast0 = Annotated[int, Range(ge=0, rule="must be 0 or more")]
AtLeast1 = Annotated[int, Range(ge=1, rule="must be 1 or more")]
Positive = Annotated[float, Range(gt=0, rule="must be above 0")]
MaxPixels = Annotated[int | None, Range(ge=784, rule="a picture needs 28 x 28 = 784 pixels or more")]


@dataclass(frozen=True)
class TuningOptions(Options):
    """What of a model is tuned, and how it fits into memory."""

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
class TrainerOptions(TuningOptions):
    """How and on what a vision-language model is trained; commands add what they train it to do."""

    USUAL_RATE: ClassVar[float] = 1e-4
    """Learning rate of GRPO for all weights or a LoRA, if none is given."""

    device: str = "cpu"
    """cpu, cuda ..."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights."""
    seed: AtLeast0 = 0
    """Everything random follows from it, except the embedded held-out rows, which are the same for all."""

    max_train_steps: AtLeast1 = 40
    """GRPO updates."""
    prompts_per_step: AtLeast1 = 16
    """Groups in an update, on each device."""
    group_size: Annotated[int, Range(ge=2, rule="a group needs at least 2 answers to be compared; try 8")] = 8
    """Answers to one prompt that are compared with each other."""
    accumulation_steps: AtLeast1 = 1
    """Parts that an update's answers are split into; must divide prompts times group."""
    learning_rate: Annotated[float | None, Range(gt=0, rule="must be above 0")] = None
    """Of GRPO; if not given, 1e-4, and 0.1 for --weights last-norm."""
    lr_scheduler: str = "linear"
    """As transformers names it: constant, linear, cosine, constant_with_warmup ..."""
    warmup_steps: AtLeast0 = 4
    """Updates in which the learning rate rises from 0."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""
    beta: Annotated[float, Range(ge=0, rule="must be 0 or more")] = 0.0
    """Weight of the KL to the reference model; 0 needs no reference model."""
    loss_type: str = "dr_grpo"
    """TRL's: grpo, dr_grpo, dapo, bnpo, cispo, sapo, luspo, vespo ..."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide advantages by the standard deviation of the group, of the batch, or not."""
    aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """Add the task's parts and then normalise in the group, or normalise each part first (GDPO)."""
    reward_weights: tuple[float, ...] = ()
    """One weight for each part of the task's reward; all 1 if empty."""
    temperature: Positive = 1.0
    """Of the sampling, in training and wherever else answers are sampled."""
    top_p: Annotated[float, Range(gt=0, le=1)] = 1.0
    """Nucleus of the sampling."""
    max_tokens: AtLeast1 = 96
    """Most tokens of an answer."""
    max_pixels: MaxPixels = None
    """Largest picture in pixels; larger ones are scaled down before they become tokens."""
    generation_batch: AtLeast1 = 64
    """Answers generated at once in probe and evaluation."""

    weights: Literal["all", "last-norm"] = "all"
    """Weights of the language part that GRPO trains where there is no LoRA: all, or the gains of its last norm alone (LN tuning)."""
    freeze_vision: bool = True
    """Train nothing of the vision tower, and make sure of it; a LoRA of --rank leaves it alone anyway."""

    sft_steps: AtLeast1 = 200
    """Updates of the sft stage."""
    sft_batch: AtLeast1 = 32
    """Rows in one of them, on each device."""
    sft_learning_rate: Positive = 1e-4
    """Of the sft stage, cosine with 5 % warm-up."""

    validation_steps: AtLeast0 = 10
    """Updates between two validations."""
    checkpointing_steps: AtLeast0 = 20
    """Updates between checkpoints; 0 = only on interrupt."""
    checkpoints_total_limit: AtLeast1 = 2
    """Checkpoints kept."""
    resume_from_checkpoint: str | None = None
    """A checkpoint folder, or latest."""
    allow_changed: bool = False
    """Resume although the configuration differs."""
    overwrite: bool = False
    """Replace the run that --output-dir holds."""
    report_to: tuple[str, ...] = ()
    """Trackers besides metrics.jsonl: wandb, trackio, tensorboard."""
    push_to_hub: str | None = None
    """OWNER/NAME of a hub repository that takes the finished model and its card; made, private, before training if it is not there."""
    trl: tuple[str, ...] = ()
    """Any other argument of trl.GRPOConfig as name=value, for example epsilon_high=0.28 use_vllm=true vllm_mode=colocate."""
    dry_run: bool = False
    """Print devices, memory estimate, steps, tokens and TRL's exact arguments, refuse what cannot fit, and stop."""
    device_memory: float | None = None
    """With --dry-run: memory of a device in GiB; that of the GPU that is here if not given."""
    plan_devices: int = 1
    """With --dry-run: devices that share the run."""
    plan_sharding: Literal["none", "zero2", "zero3"] = "none"
    """With --dry-run: how they share it, where --deepspeed does not say so."""

    def __post_init__(self) -> None:
        """Refuse impossible values before any model is loaded.

        Raises:
            ConfigError: a value is out of range, or two options contradict each other.
        """
        super().__post_init__()
        check_planning(self.device_memory, self.plan_devices)
        if self.prompts_per_step * self.group_size % self.accumulation_steps:
            raise ConfigError(
                f"--accumulation-steps {self.accumulation_steps}: must divide {self.prompts_per_step} prompts x {self.group_size} answers"
            )
        if self.push_to_hub is not None:
            check_repo_name(self.push_to_hub)

    @property
    def last_norm(self) -> bool:
        """Whether GRPO trains the gains of the last norm alone."""
        return self.weights == "last-norm" and self.rank == 0

    @property
    def rate(self) -> float:
        """Learning rate of GRPO."""
        return rate_of(self.learning_rate, self.weights, self.rank, self.usual_rate)

    @property
    def usual_rate(self) -> float:
        """Learning rate of GRPO for all weights or a LoRA, if none is given."""
        return self.USUAL_RATE


def rate_of(given: float | None, weights: str, rank: int, usual: float) -> float:
    """Learning rate of GRPO: the one given, or what suits the weights that are trained, the gains of a norm being few and near 1."""
    return given if given is not None else 0.1 if weights == "last-norm" and not rank else usual
