"""Every option of `align-retoucher`. The docstring under a field is its help text."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from policies.retoucher.config_rules import RULES, check_guidance
from portraitkit.errors import ConfigError
from portraitkit.hub import check_repo_name
from portraitkit.memory.plan import check_planning

if TYPE_CHECKING:
    from dpg.scheduler import DPGScheduler
    from policies.retoucher.rank_groups import GroupSettings
    from policies.retoucher.update import Loss


def _readable(shown: str) -> str:
    """A default with an apostrophe in it, which tyro shows as a shell's `'"'"'`."""
    return f'(default: "{shlex.split(shown)[0]}")'


@dataclass(frozen=True)
class RetoucherConfig:
    """Align a diffusion portrait retoucher by online reinforcement learning."""

    output_dir: str = "runs/retoucher"
    """Run folder: configuration, metrics, checkpoints, summary.json, report.html and the LoRA."""
    backbone: str = "tiny"
    """tiny (embedded, CPU), flux_kontext, qwen_image_edit, qwen_image_edit_plus, or my_file.py:BACKBONE."""
    model: str | None = None
    """Hub id or local folder of the backbone's weights; the backbone's own default if not given."""
    photos: str = "embedded"
    """embedded (synthetic portraits) or a folder with metadata.jsonl: file_name and, for DPG, anchor_file_name."""
    prompt: Annotated[str, tyro.conf.arg(help_behavior_hint=_readable)] = (
        "Beautify this person's face while maintaining a natural and realistic appearance"
    )
    """Editing instruction; the default is the one BeautyGRPO released."""
    resolution: int | None = None
    """Side of the square face crops in pixels; the backbone's own if not given."""
    device: str = "cpu"
    """cpu, cuda, cuda:1 ...; several processes take a GPU each with cuda."""
    guidance: float | None = None
    """Guidance scale; the backbone's own if not given. On qwen_image_edit it is true classifier-free guidance: at 1 it is off,
    at half the cost."""
    negative_prompt: str = " "
    """What true classifier-free guidance leads away from."""
    quantize: Literal["none", "nf4"] = "none"
    """nf4: the transformer's frozen weights in 4 bits (bitsandbytes); LoRA stays float32."""
    offload_text_encoder: bool = False
    """Text encoders are on the device only while they encode."""
    vae_tiling: bool = False
    """Encode and decode large pictures in tiles, in less memory."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward instead of keeping them: a third more time, a fraction of the memory."""
    cache_dir: str | None = None
    """Where encoded photos, anchors and prompts are kept, one file each, and encoded once; for a folder of photos OUTPUT_DIR/cache if not
    given, for the embedded ones nowhere. none turns it off."""
    sharding: Literal["none", "fsdp2"] = "none"
    """fsdp2: several processes hold a part of the frozen base each, and gather a block when it is evaluated; the LoRA is whole in each."""
    seed: int = 0
    """Everything random follows from it."""

    num_steps: int = 8
    """T, sampling steps of a rollout."""
    eval_num_steps: int = 0
    """Sampling steps of validation and of the held-out photos; 0: as --num-steps."""
    sampler: Literal["flow_sde", "cps", "dance_sde"] = "flow_sde"
    """Stochastic step: Flow-GRPO's, coefficients-preserving (Flow-CPS), or DanceGRPO's."""
    eta: float = 0.7
    """Noise level of the stochastic steps."""
    window: Literal["all", "segments", "window", "sliding"] = "segments"
    """Which steps are stochastic: all (Flow-GRPO), one of each segment (DPG), a fixed window (Flow-GRPO-Fast), a sliding one (MixGRPO)."""
    segments: int = 3
    """K: with --window segments, one random step of each of K equal parts is stochastic and trained."""
    window_start: int = 0
    """First step of the window."""
    window_width: int = 2
    """Steps in the window."""
    window_stride: int = 1
    """With --window sliding: steps the window moves on."""
    window_every: int = 25
    """With --window sliding: training steps between two moves."""

    dpg: bool = True
    """Dynamic Path Guidance: pull stochastic steps towards the photo's preferred retouch."""
    lam_schedule: Literal["linear", "sigma", "constant", "zero"] = "linear"
    """How the guidance falls from the noisy start to the end."""
    lam_max: float = 0.95
    """Largest guidance; 1 would leave no randomness."""
    anchor: Literal["label", "wrong", "none"] = "label"
    """With --dpg: the photo's own anchor; another photo's (ablation); none: the noise is attenuated and nothing pulls (ablation)."""

    photos_per_step: int = 4
    """Groups in a training step."""
    group_size: int = 12
    """Candidates of one photo that are compared with each other."""
    shared_noise: bool = True
    """One initial noise per group: the steps before the first stochastic one, and that step's own gradient, are computed once a group."""

    bf16_rollouts: bool = False
    """Rollouts: a candidate's own ODE steps and its decoding in bfloat16, on a CPU only if it multiplies bfloat16 natively (twice as fast
    there; PORTRAITKIT_CPU_BF16=on or off overrules the measurement). The stochastic steps, the updates and every evaluation stay in the
    backbone's own type, so that the ratio is exact."""

    rewards: tuple[str, ...] = ("blemish_removal", "texture", "skin_tone", "identity", "clarity", "own_color")
    """Rewards in use: the verifiable ones, clip_similarity:PATH (open_clip weights), iqa:NAME (a pyiqa metric), judge:PATH[:FORM]."""
    reward: tuple[str, ...] = ()
    """Further rewards beside --rewards, such as judge:PATH: embedded, a folder, a hub id, vllm:ID or http://host:port/v1, with :score (the
    default), :score_beside_anchor, :versus_anchor or :win_rate behind it (docs/judge.md)."""
    reward_weights: tuple[float, ...] = ()
    """One weight a reward, in the order of --rewards and then --reward; each reward's own if empty."""
    reward_worker: tuple[str, ...] = ()
    """Workers that score what they serve, each http://host:port of a serve-rewards: learned rewards must be served by one, verifiable ones
    may be. The token, if they want one, is in REWARD_WORKER_TOKEN. Where rewards are scored changes none of them (docs/rewards.md)."""
    reward_worker_timeout: float = 120.0
    """Seconds for one group's rewards, its wait in the worker's queue included; then the group is sent again."""
    reward_worker_patience: float = 600.0
    """Seconds without any value from the workers after which the run saves a checkpoint and stops."""
    combine: Literal["product", "sum", "minimum"] = "product"
    """How the rewards of a candidate become one."""
    advantage: Literal["combined", "per_reward"] = "combined"
    """Normalise the combined reward in its group, or each reward on its own before they are summed (GDPO, MixGRPO)."""
    credit: Literal["photo", "local"] = "photo"
    """Credit every token of a candidate with the whole reward, or with what its own part of the picture added to it."""
    global_std: bool = False
    """Divide by the standard deviation of the whole batch instead of the group's."""
    advantage_clip: float = 5.0
    """Advantages are clipped to this magnitude."""
    max_unscorable: float = 0.25
    """Stop when more than this share of a step's candidates could not be scored."""

    max_train_steps: int = 60
    """Training steps: one rollout and its updates each."""
    max_network_evaluations: int = 0
    """Stop after so many evaluations of the transformer (a backward counts as two), whatever the steps; 0 = no limit."""
    updates_per_step: int = 1
    """Optimiser updates a training step; the photos are divided among them."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """AdamW, or the same with its state in 8 bits (bitsandbytes)."""
    lr_scheduler: Literal["constant", "linear"] = "linear"
    """After the warm-up: constant, or falling linearly to 0 at --max-train-steps."""
    warmup_steps: int = 3
    """Training steps of linear warm-up."""
    adam_epsilon: float = 1e-8
    """Added to AdamW's denominator; well above the gradient's size it turns AdamW into SGD with momentum."""
    weight_decay: float = 0.0
    """Of AdamW."""
    rank: int = 16
    """LoRA rank."""
    lora_alpha: int = 16
    """LoRA alpha."""
    init_adapter: str | None = None
    """LoRA to start from: a folder with pytorch_lora_weights.safetensors, or a .safetensors file; its rank and alpha must be the run's."""
    clip_range: float = 1e-4
    """Clip range of the ratio; small, because log-probabilities are means over the latent's dimensions."""
    ratio: Literal["ppo", "guard"] = "ppo"
    """Likelihood ratio as it is, or standardised per step as GRPO-Guard does."""
    kl_beta: float = 0.0
    """Weight of the Gaussian KL to the base policy (adapters off)."""
    step_weight: Literal["equal", "attenuation"] = "equal"
    """Loss weight of a guided step: 1, or 1 - lam, since at lam near 1 the outcome hardly depends on the noise."""
    max_grad_norm: float = 1.0
    """Gradient clipping."""
    max_bad_updates: int = 5
    """Stop after so many updates in a row with a loss or gradient that is not finite."""
    ema_decay: float = 0.0
    """Moving average of the LoRA used for evaluation and saving; 0 = off."""
    micro_batch: int = 48
    """Candidates (in evaluations, photos) in one forward, and in one forward and backward, of a process; halved where memory runs out.
    Photos whose groups fit into it are rolled out together, at least one; while the next ones are rolled out, reward workers score."""

    validation_steps: int = 10
    """Training steps between two validations by the anchor-free ODE."""
    validation_photos: int = 24
    """Photos of the validation split (never the held-out one)."""
    held_out_photos: int = 48
    """Photos of the held-out split, looked at before and after training only."""
    keep_best: bool = True
    """Keep the adapter with the best validation reward instead of the last one."""
    baseline_noise: int = 7
    """Seed of the initial noise of every evaluation, the same before and after."""

    checkpointing_steps: int = 20
    """Training steps between checkpoints; 0 = only at the end or on interrupt."""
    checkpoints_total_limit: int | None = 2
    """Checkpoints kept."""
    resume_from_checkpoint: str | None = None
    """A checkpoint folder, or latest."""
    allow_changed: bool = False
    """Resume although the configuration, or the number of processes, differs from the checkpoint's."""
    overwrite: bool = False
    """Replace the run that --output-dir holds."""
    report_to: tuple[str, ...] = ()
    """Trackers besides metrics.jsonl: wandb, trackio, tensorboard."""
    push_to_hub: str | None = None
    """OWNER/NAME of a hub repository that takes the LoRA and its card, no pictures; made, private, before training if it is not there."""
    ablate: bool = False
    """Run the six arms of the DPG ablation instead of one training."""
    ablate_seeds: int = 3
    """Seeds of each arm."""
    dry_run: bool = False
    """Print parameters and memory of the run on each device, refuse what cannot fit, and stop."""
    device_memory: float | None = None
    """With --dry-run: memory of a device in GiB; that of the GPU that is here if not given."""
    plan_devices: int = 1
    """With --dry-run: devices that share the run, as --sharding says."""

    def __post_init__(self) -> None:
        """Refuse impossible values before any model is loaded.

        Raises:
            ConfigError: a value is out of range, or two options contradict each other.
        """
        rules = {
            "num_steps": self.num_steps >= 1,
            "eval_num_steps": self.eval_num_steps >= 0,
            "photos_per_step": self.photos_per_step >= 1,
            "max_train_steps": self.max_train_steps >= 1,
            "rank": self.rank >= 1,
            "warmup_steps": self.warmup_steps >= 0,
            "micro_batch": self.micro_batch >= 1,
            "updates_per_step": 1 <= self.updates_per_step <= self.photos_per_step,
            "learning_rate": self.learning_rate > 0,
            "eta": self.eta > 0,
            "lam_max": 0 <= self.lam_max <= 1,
            "validation_photos": self.validation_photos >= 1,
            "held_out_photos": self.held_out_photos >= 2,
            "ema_decay": 0 <= self.ema_decay < 1,
            "validation_steps": self.validation_steps >= 1,
            "checkpointing_steps": self.checkpointing_steps >= 0,
            "adam_epsilon": self.adam_epsilon > 0,
            "weight_decay": self.weight_decay >= 0,
            "max_grad_norm": self.max_grad_norm > 0,
            "clip_range": self.clip_range > 0,
            "advantage_clip": self.advantage_clip > 0,
            "kl_beta": self.kl_beta >= 0,
            "lora_alpha": self.lora_alpha >= 1,
            "ablate_seeds": self.ablate_seeds >= 1,
            "max_network_evaluations": self.max_network_evaluations >= 0,
            "max_unscorable": 0 <= self.max_unscorable <= 1,
            "reward_worker_timeout": self.reward_worker_timeout > 0,
            "reward_worker_patience": self.reward_worker_patience >= self.reward_worker_timeout,
            "seed": 0 <= self.seed < 2**63,
        }
        for name, holds in rules.items():
            if not holds:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: {RULES[name]}")
        check_guidance(self.guidance)
        check_planning(self.device_memory, self.plan_devices)
        if self.push_to_hub is not None:
            check_repo_name(self.push_to_hub)
            if self.ablate:
                raise ConfigError("--push-to-hub: an ablation has many models; leave one of --push-to-hub and --ablate out")
        if self.group_size < 2:
            raise ConfigError(f"--group-size {self.group_size}: a group needs at least 2 candidates to be compared; try 12")
        if self.dpg and self.anchor == "wrong" and self.photos_per_step < 2:
            raise ConfigError(f"--anchor wrong: takes another photo's anchor; --photos-per-step {self.photos_per_step} must be 2 or more")
        if self.sharding != "none" and (self.quantize != "none" or self.ablate):
            raise ConfigError(f"--sharding {self.sharding}: goes with neither --quantize nor --ablate; leave those out")
        if self.window == "segments" and self.segments > self.num_steps:
            raise ConfigError(f"--segments {self.segments}: at most --num-steps ({self.num_steps}), one drawn step a segment")
        if self.credit == "local" and (self.advantage, self.ratio, self.global_std) != ("combined", "ppo", False):
            raise ConfigError("--credit local: goes with --advantage combined, --ratio ppo and --no-global-std; leave those options out")
        if self.reward_weights and len(self.reward_weights) != len(self.all_rewards):
            raise ConfigError(
                f"--reward-weights has {len(self.reward_weights)} values for {len(self.all_rewards)} rewards: give one each, or none"
            )

    def scheduler(self, sigmas: Sequence[float], iteration: int) -> "DPGScheduler":
        """The scheduler that takes the steps of a rollout, its stochastic ones drawn: equal seed and iteration draw equal steps.

        Args:
            sigmas: noise levels from 1 to 0, one more than there are steps.
            iteration: training step.
        """
        from dpg.scheduler import DPGScheduler

        scheduler = DPGScheduler(
            sampler=self.sampler,
            eta=self.eta,
            window=self.window,
            segments=self.segments,
            window_start=self.window_start,
            window_width=self.window_width,
            window_stride=self.window_stride,
            window_every=self.window_every,
            lambda_kind=self.lam_schedule if self.dpg else "zero",
            lambda_max=self.lam_max,
            lambda_target="mean" if self.anchor == "none" else "anchor",
        )
        scheduler.set_timesteps(sigmas=list(sigmas[:-1]))
        scheduler.draw(self.seed, iteration=iteration, record=True)
        return scheduler

    def check_sampling(self) -> None:
        """Refuse sampling settings that cannot train anything, before a model is loaded.

        Raises:
            ConfigError: the window does not fit, the sampler refuses eta, or no step can be stochastic.
        """
        sigmas = [1 - step / self.num_steps for step in range(self.num_steps + 1)]
        try:
            scheduler = self.scheduler(sigmas, 0)
            drawn = scheduler.drawn_steps
            if drawn:
                scheduler.sampler.coefficients(sigmas[drawn[0]], sigmas[drawn[0] + 1])
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if not drawn:
            raise ConfigError(
                f"--num-steps {self.num_steps}, --window {self.window}, --lam-max {self.lam_max}: no step can be stochastic "
                "(the last one never is, nor one with guidance 1); take more steps or less guidance"
            )

    @property
    def loss(self) -> "Loss":
        """What an update minimises."""
        from policies.retoucher.update import Loss

        return Loss(self.clip_range, self.ratio, self.kl_beta, self.step_weight)

    @property
    def groups(self) -> "GroupSettings":
        """How the groups of a training step are rolled out."""
        from policies.retoucher.rank_groups import GroupSettings

        return GroupSettings(
            prompt=self.prompt,
            groups_per_step=self.photos_per_step,
            group_size=self.group_size,
            shared_noise=self.shared_noise,
            anchor=self.anchor if self.dpg else "none",
            seed=self.seed,
            micro_batch=self.micro_batch,
            bf16=self.bf16_rollouts,
        )

    @property
    def evaluation_steps(self) -> int:
        """Sampling steps of an evaluation."""
        return self.eval_num_steps or self.num_steps

    @property
    def all_rewards(self) -> tuple[str, ...]:
        """--rewards and --reward, in the order of the weights."""
        return (*self.rewards, *self.reward)
