"""Every option of `align-retoucher`. The docstring under a field is its help text, that of a class its group's title.

The defaults are a real model's, FLUX.1 Kontext with BeautyGRPO's settings where these were published, else others' or ours as the
docstrings say (docs/papers.md). The embedded retoucher has the recipe tiny_retoucher beneath what is given.
"""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from portraitkit.config import MAY_CHANGE, AtLeast0, AtLeast1, NotNegative, Options, Positive, Range, Seed, Share, lay_beneath
from portraitkit.errors import ConfigError
from portraitkit.parallel import is_first_process, launched_processes
from portraitkit.runs.options import CheckpointOptions, PlanOptions

if TYPE_CHECKING:
    from dpg.scheduler import DPGScheduler
    from policies.retoucher.update import Loss

USED_BY = {
    ("grpo",): ("ratio",),
    ("grpo", "neighbor"): ("clip_range",),
    ("grpo", "dppo"): ("step_weight", "ablate"),
    ("dppo",): ("kl_threshold",),
    ("nft",): ("noise_levels", "old_policy_decay"),
    ("neighbor",): ("perturbation", "neighbor_anchors", "advantage_p"),
}
"""Options that only some values of --loss know."""


def idle_options(loss: str, dpg: bool) -> list[str]:
    """Options that do nothing with a loss: neighbor, and nft without `dpg`, draw candidates by the plain ODE."""
    drawing = {"nft": [] if dpg else ["sampler", "eta", "window"], "neighbor": ["sampler", "eta"]}
    return [name for losses, names in USED_BY.items() if loss not in losses for name in names] + drawing.get(loss, [])


@dataclass(frozen=True, kw_only=True)
class BackboneOptions(Options):
    """Model."""

    backbone: str = "tiny"
    """tiny (embedded, CPU), flux_kontext, flux2_klein, qwen_image_edit, qwen_image_edit_plus, or my_file.py:BACKBONE."""
    model: str | None = None
    """Hub id or local folder of the backbone's weights; the backbone's own default if not given."""
    resolution: int | None = None
    """Side of the square face crops in pixels; the backbone's own if not given."""
    prompt: str = "Beautify this person's face while maintaining a natural and realistic appearance"
    """Editing instruction; the default is the one BeautyGRPO released."""
    guidance: Annotated[float | None, Range(ge=1, rule="at least 1 (no guidance)")] = None
    """Guidance scale; the backbone's own if not given. On qwen_image_edit and flux2_klein classifier-free: off at 1, at half the cost."""
    negative_prompt: str = " "
    """What classifier-free guidance leads away from."""
    device: str = "cuda"
    """cpu, cuda, cuda:1 ...; several processes take a GPU each with cuda."""
    quantize: Literal["none", "nf4"] = "none"
    """nf4: the transformer's frozen weights in 4 bits (bitsandbytes); LoRA stays float32."""
    offload_text_encoder: bool = False
    """Text encoders are on the device only while they encode."""
    vae_tiling: bool = False
    """Encode and decode large pictures in tiles, in less memory."""

    @classmethod
    def revise(cls, values: dict[str, Any], typed: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """With the embedded retoucher: tiny_retoucher beneath, without what a recipe says of another model, but all that was typed."""
        if cls.chosen(values, typed)["backbone"] != "tiny":
            return values
        if values.get("backbone", "tiny") != "tiny":
            foreign = {field.name for field in fields(BackboneOptions)} - {"backbone", "prompt"}
            foreign |= {"sharding"} if launched_processes() == 1 else set()
            left_out = {name: value for name, value in values.items() if name in foreign and name not in typed}
            if left_out and is_first_process():
                shown = ", ".join(f"{name} = {json.dumps(value)}" for name, value in left_out.items())
                print(f"--backbone tiny: without the recipe's {shown}", file=sys.stderr)
            values = {name: value for name, value in values.items() if name not in left_out}
        return lay_beneath("tiny_retoucher", cls, values)


@dataclass(frozen=True)
class PlaceOptions(Options):
    """What and where."""

    output_dir: Annotated[str, MAY_CHANGE] = "runs/retoucher"
    """Run folder: configuration, metrics, checkpoints, summary.json, report.html and the LoRA."""
    photos: str = "embedded"
    """embedded (synthetic portraits) or a folder of portraits, with or without metadata.jsonl (docs/align_retoucher.md)."""
    cache_dir: Annotated[str | None, MAY_CHANGE] = None
    """Where faces that were found, and encoded photos, anchors and prompts are kept. If not given, faces are in ~/.cache/portraitkit
    (PORTRAITKIT_CACHE), encodings of a folder of photos in OUTPUT_DIR/cache, of the embedded ones nowhere. none keeps nothing."""
    seed: Seed = 0
    """Everything random follows from it."""


@dataclass(frozen=True)
class RolloutOptions(Options):
    """Rollouts."""

    num_steps: AtLeast1 = 10
    """T, sampling steps of a rollout. Flow-GRPO's on Qwen-Image-Edit; BeautyGRPO did not publish its own."""
    sampler: Literal["flow_sde", "cps", "dance_sde"] = "flow_sde"
    """Stochastic step: Flow-GRPO's, coefficients-preserving (Flow-CPS), or DanceGRPO's."""
    eta: Annotated[float, Range(gt=0, rule="must be above 0, or nothing is explored")] = 0.7
    """Noise level of the stochastic steps; 0.7 is Pref-GRPO's on FLUX.1 Kontext."""
    window: Literal["all", "segments", "window", "sliding"] = "segments"
    """Which steps are stochastic: all (Flow-GRPO), one of each segment (DPG), a fixed window (Flow-GRPO-Fast), a sliding one (MixGRPO)."""
    segments: AtLeast1 = 3
    """K: with --window segments, one random step of each of K equal parts is stochastic and trained; 3 is BeautyGRPO's."""
    window_start: AtLeast0 = 0
    """First step of the window."""
    window_width: AtLeast1 = 2
    """Steps in the window."""
    window_stride: AtLeast1 = 1
    """With --window sliding: steps the window moves on."""
    window_every: AtLeast1 = 25
    """With --window sliding: training steps between two moves."""
    photos_per_step: AtLeast1 = 4
    """Groups in a training step."""
    group_size: Annotated[int, Range(ge=2, rule="a group needs at least 2 candidates to be compared; try 12")] = 16
    """Candidates of one photo that are compared with each other; 16 is Flow-GRPO's on Qwen-Image-Edit."""
    shared_noise: bool = True
    """One initial noise per group: the steps before the first stochastic one, and that step's own gradient, are computed once a group."""
    bf16_rollouts: bool = False
    """A candidate's own ODE steps and its decoding in bfloat16, on a CPU only if it multiplies that natively (PORTRAITKIT_CPU_BF16=on or
    off overrules). Stochastic steps, updates and evaluations stay in the backbone's own type, so that the ratio is exact."""
    micro_batch: AtLeast1 = 4
    """Candidates (in evaluations, photos) in one forward, and in one forward and backward, of a process; halved where memory runs out.
    Photos whose groups fit into it are rolled out together, at least one; while the next ones are rolled out, reward workers score."""


@dataclass(frozen=True)
class GuidanceOptions(Options):
    """Dynamic Path Guidance."""

    dpg: bool = True
    """Pull stochastic steps towards the photo's preferred retouch."""
    lam_schedule: Literal["linear", "sigma", "constant", "zero"] = "linear"
    """How the guidance falls from the noisy start to the end."""
    lam_max: Annotated[float, Range(ge=0, le=1, rule="between 0 (no guidance) and 1")] = 0.95
    """Largest guidance; 1 would leave no randomness."""
    anchors: Literal["file", "painted", "best-of-n"] | None = None
    """Preferred retouches of --photos: file, the anchor_file_name of every photo (the default); painted, the photos are clean portraits:
    blemishes are painted onto them, and the photo itself is the anchor; best-of-n, the policy's own best rollout."""
    best_of: Annotated[int, Range(ge=2, rule="at least 2 rollouts, of which one is the best")] = 8
    """With --anchors best-of-n: rollouts of which the anchor is the best, by the rewards of the run."""
    best_of_steps: AtLeast1 = 20
    """With --anchors best-of-n: training steps after which an anchor is made again."""
    anchor: Literal["label", "wrong", "none"] = "label"
    """The photo's own anchor; for ablations another photo's, or none: the noise is attenuated and nothing pulls."""
    step_weight: Literal["equal", "attenuation"] = "equal"
    """Loss weight of a guided step: 1, or 1 - lam, since at lam near 1 the outcome hardly depends on the noise."""


@dataclass(frozen=True)
class RewardOptions(Options):
    """Rewards."""

    rewards: tuple[str, ...] = ("blemish_removal", "texture", "skin_tone", "identity", "clarity", "own_color")
    """Rewards in use: the verifiable ones, clip_similarity:PATH (open_clip weights), iqa:NAME (a pyiqa metric), arcface[:PATH]
    (insightface's net), judge:PATH[:FORM]."""
    reward: tuple[str, ...] = ()
    """Further rewards beside --rewards, such as judge:PATH: embedded, a folder, a hub id, vllm:ID or http://host:port/v1, with :score (the
    default), :score_beside_anchor, :versus_anchor or :win_rate behind it (docs/judge.md)."""
    reward_weights: tuple[float, ...] = ()
    """One weight a reward, in the order of --rewards and then --reward; each reward's own if empty."""
    reward_worker: Annotated[tuple[str, ...], MAY_CHANGE] = ()
    """Workers that score what they serve, each http://host:port of a serve-rewards: learned rewards must be served by one, verifiable ones
    may be; no value changes (docs/rewards.md). The token, if they want one, is in REWARD_WORKER_TOKEN."""
    reward_worker_timeout: Annotated[Positive, MAY_CHANGE] = 120.0
    """Seconds for one group's rewards, its wait in the worker's queue included; then the group is sent again."""
    reward_worker_patience: Annotated[float, MAY_CHANGE] = 600.0
    """Seconds without any value from the workers after which the run saves a checkpoint and stops."""
    combine: Literal["product", "sum", "minimum"] = "product"
    """How the rewards of a candidate become one."""
    advantage: Literal["combined", "mixgrpo", "gdpo"] = "combined"
    """Standardise the combined reward in its group, or each reward on its own before they are summed: mixgrpo takes that sum as it is, gdpo
    divides it by its deviation over the batch."""
    credit: Literal["photo", "local"] = "photo"
    """Credit every token of a candidate with the whole reward, or with what its own part of the picture added to it."""
    global_std: bool = False
    """Divide by the standard deviation of all the step's rewards as they are (ddof 0, Flow-GRPO's), not by the group's own (ddof 1)."""
    max_unscorable: Share = 0.25
    """Stop when more than this share of a step's candidates could not be scored."""

    @property
    def all_rewards(self) -> tuple[str, ...]:
        """--rewards and --reward, in the order of the weights."""
        return (*self.rewards, *self.reward)


@dataclass(frozen=True)
class UpdateOptions(Options):
    """LoRA and training."""

    rank: AtLeast1 = 32
    """LoRA rank; BeautyGRPO's, as the alpha is."""
    lora_alpha: AtLeast1 = 32
    """LoRA alpha."""
    init_adapter: str | None = None
    """LoRA to start from: a folder with pytorch_lora_weights.safetensors, or a .safetensors file; its rank and alpha must be the run's."""
    max_train_steps: AtLeast1 = 1000
    """Training steps: one rollout and its updates each."""
    max_network_evaluations: AtLeast0 = 0
    """Stop after so many evaluations of the transformer (a backward counts as two), whatever the steps; 0 = no limit."""
    updates_per_step: AtLeast1 = 1
    """Optimiser updates a training step; the photos are divided among them."""
    learning_rate: Positive = 1e-4
    """Peak learning rate of AdamW (ours: Flow-GRPO takes 3e-4 and Pref-GRPO 3e-5, both for rank 64)."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """AdamW, or the same with its state in 8 bits (bitsandbytes)."""
    lr_scheduler: Literal["constant", "linear"] = "linear"
    """After the warm-up: constant, or falling linearly to 0 at --max-train-steps."""
    warmup_steps: AtLeast0 = 3
    """Training steps of linear warm-up."""
    weight_decay: NotNegative = 0.0
    """Of AdamW."""
    clip_range: Positive = 1e-4
    """Clip range of the ratio; small, because log-probabilities are means over the latent's dimensions. 1e-4 is Flow-GRPO's."""
    kl_threshold: Positive = 1e-5
    """With --loss dppo: KL of a stochastic step from the old policy's, a mean over the latent's dimensions, beyond which no update takes it
    farther; 1e-5 is Flow-DPPO's."""
    perturbation: Annotated[float, Range(gt=0, le=1)] = 0.3
    """With --loss neighbor: how far a candidate's initial noise is from its group's, 1 for noises of their own; 0.3 is the paper's best."""
    neighbor_anchors: AtLeast1 = 4
    """With --loss neighbor: candidates of a group whose steps are trained, the paper's anchors; its best are 4 of 12."""
    advantage_p: Annotated[float, Range(gt=0, le=2)] = 0.8
    """With --loss neighbor: p of the quasi-norm that a group's advantages are divided by; the paper's best."""
    loss: Literal["grpo", "dppo", "nft", "neighbor"] = "grpo"
    """grpo: the clipped likelihood ratio of the stochastic steps. dppo (Flow-DPPO): the ratio where the KL from the old policy lets it.
    nft (DiffusionNFT): the velocity regressed towards better and away from worse candidates, whatever sampled them; with --no-dpg plain
    ODEs, each from its own noise (--no-shared-noise). neighbor (Neighbor GRPO, with --no-dpg): plain ODEs from noises near each other, the
    steps of --window pulled towards those of better candidates."""
    noise_levels: AtLeast1 = 2
    """With --loss nft: noise levels of the sampler, drawn anew each training step, that candidates are learned from."""
    old_policy_decay: Annotated[float, Range(ge=0, lt=1)] = 0.0
    """With --loss nft: largest weight of the old policy, which draws the candidates, in its moving average; it rises by .001 a training
    step. DiffusionNFT's is 0.5; 0: the policy itself."""
    anchor_weight: NotNegative = 0.0
    """With --loss nft: weight of a photo's anchor, learned from as its best candidate, against all candidates of the photo."""
    ratio: Literal["ppo", "guard"] = "ppo"
    """Likelihood ratio as it is, or standardised per step as GRPO-Guard does."""
    kl_beta: NotNegative = 0.0
    """Weight of the Gaussian KL to the base policy (adapters off); with --loss nft and neighbor, of their squared distance."""
    max_grad_norm: Positive = 1.0
    """Gradient clipping."""
    ema_decay: Annotated[float, Range(ge=0, lt=1)] = 0.0
    """Moving average of the LoRA used for evaluation and saving; 0 = off."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward instead of keeping them: a third more time, a fraction of the memory."""
    sharding: Literal["none", "fsdp2"] = "none"
    """fsdp2: several processes hold a part of the frozen base each, and gather a block when it is evaluated; the LoRA is whole in each."""


@dataclass(frozen=True)
class EvaluationOptions(Options):
    """Evaluation."""

    eval_num_steps: AtLeast0 = 28
    """Sampling steps of validation and of the held-out photos; 0: as --num-steps. 28 is BeautyGRPO's and Flow-GRPO's on FLUX.1 Kontext."""
    validation_steps: AtLeast1 = 10
    """Training steps between two validations by the anchor-free ODE."""
    on_alarm: Annotated[Literal["say", "stop"], MAY_CHANGE] = "say"
    """stop: end the run at the alarm hacking, collapse, spread or judge hacked, and name the last checkpoint from before it."""
    validation_photos: AtLeast1 = 24
    """Photos of the validation split (never the held-out one)."""
    held_out_photos: Annotated[int, Range(ge=2, rule="at least 2, or there is no interval")] = 48
    """Photos of the held-out split, looked at before and after training only."""
    keep_best: bool = True
    """Keep the adapter with the best validation reward instead of the last one."""
    ablate: bool = False
    """Run the arms of the ablation, one after the other, instead of one training."""
    ablate_seeds: Annotated[AtLeast1, MAY_CHANGE] = 3
    """Seeds of each arm."""
    ablate_arms: Annotated[tuple[str, ...], MAY_CHANGE] = ()
    """With --ablate: arms by their names, such as dpg and nft, in place of all (docs/ablation.md)."""


@dataclass(frozen=True)
class RetoucherConfig(
    PlaceOptions,
    BackboneOptions,
    RolloutOptions,
    GuidanceOptions,
    RewardOptions,
    UpdateOptions,
    EvaluationOptions,
    CheckpointOptions,
    PlanOptions,
):
    """Align a diffusion portrait retoucher by online reinforcement learning.

    Defaults follow the backbone: --help --backbone flux_kontext shows those of a real model.
    """

    REMOVED: ClassVar[dict[str, str]] = {
        "baseline_noise": "evaluations always start from the same noise",
        "adam_epsilon": "it is AdamW's own, 1e-8",
        "advantage per_reward": "give mixgrpo (the sum of standardised rewards as it is) or gdpo (divided by its deviation over the batch)",
        "advantage_clip": "advantages are clipped to 5, as Flow-GRPO does",
        "max_bad_updates": "a run stops after more than 5 updates in a row that are not finite; lower --learning-rate or --max-grad-norm",
    }

    def check(self) -> None:
        """Refuse options that contradict each other, before any model is loaded: ConfigError for the first, with the way out."""
        if self.updates_per_step > self.photos_per_step:
            raise ConfigError(f"--updates-per-step {self.updates_per_step}: at most --photos-per-step ({self.photos_per_step})")
        if not (wait := self.reward_worker_patience) >= self.reward_worker_timeout:
            raise ConfigError(f"--reward-worker-patience {wait:g}: at least --reward-worker-timeout, or the first slow answer ends the run")
        if self.ablate_arms and not self.ablate:
            raise ConfigError("--ablate-arms: needs --ablate; add it, or leave --ablate-arms out")
        if self.push_to_hub is not None and self.ablate:
            raise ConfigError("--push-to-hub: an ablation has many models; leave one of --push-to-hub and --ablate out")
        if self.learns_from_anchors and self.anchor == "wrong" and self.photos_per_step < 2:
            raise ConfigError(f"--anchor wrong: takes another photo's anchor; --photos-per-step {self.photos_per_step} must be 2 or more")
        if self.anchors == "file" and self.photos == "embedded":
            raise ConfigError("--anchors file: the embedded photos have no files; leave --anchors out, or give --photos FOLDER")
        barred = self.anchor == "wrong" or self.ablate or self.sharding != "none"
        if self.anchors == "best-of-n" and (barred or not self.learns_from_anchors):
            raise ConfigError("--anchors best-of-n: needs --dpg or --anchor-weight, --anchor label, and neither --ablate nor --sharding")
        if self.sharding != "none" and (self.quantize != "none" or self.ablate):
            raise ConfigError(f"--sharding {self.sharding}: goes with neither --quantize nor --ablate; leave those out")
        if self.window == "segments" and self.segments > self.num_steps and not self.plain_rollouts:
            raise ConfigError(f"--segments {self.segments}: at most --num-steps ({self.num_steps}), one drawn step a segment")
        if self.credit == "local" and (self.advantage, self.ratio, self.global_std) != ("combined", "ppo", False):
            raise ConfigError("--credit local: goes with --advantage combined, --ratio ppo and --no-global-std; leave those options out")
        if self.global_std and self.advantage != "combined":
            raise ConfigError(f"--global-std: goes with --advantage combined, not with {self.advantage}; leave one of them out")
        if self.loss == "nft" and (self.sharding != "none" or (self.shared_noise and not self.dpg)):
            raise ConfigError("--loss nft: goes with --no-shared-noise unless --dpg draws stochastic steps, and not with --sharding")
        if self.loss == "neighbor" and (self.dpg or not self.shared_noise or self.neighbor_anchors > self.group_size):
            few = f"--neighbor-anchors {self.neighbor_anchors} of at most --group-size {self.group_size}"
            without = ", ".join(f"--{name.replace('_', '-')}" for name in idle_options(self.loss, False))
            raise ConfigError(f"--loss neighbor: goes with --no-dpg, --shared-noise and {few}, without {without}; change what differs")
        if self.anchor_weight > 0 and (self.loss != "nft" or self.anchor == "none"):
            raise ConfigError(f"--anchor-weight {self.anchor_weight:g}: needs --loss nft and an --anchor; add those, or leave it out")
        if len(self.reward_weights) not in (0, wanted := len(self.all_rewards)):
            raise ConfigError(f"--reward-weights has {len(self.reward_weights)} values for {wanted} rewards: give one each, or none")

    def check_given(self, names: Collection[str], recipe: Collection[str] = ()) -> None:
        """Refuse what does nothing, its default value too."""
        if idle := [name for name in idle_options(self.loss, self.dpg) if name in names]:
            shown = {name: f"--{name.replace('_', '-')} {getattr(self, name)}".removesuffix(" True") for name in idle}
            given = ", ".join(option + " (of the recipe)" * (name in recipe) for name, option in shown.items())
            does, it = ("does", "it") if len(idle) == 1 else ("do", "them")
            where = f"leave {it} out" + (", in a copy of the recipe" if set(idle) & set(recipe) else "")
            raise ConfigError(f"{given}: {does} nothing with --loss {self.loss} {'--dpg' if self.dpg else '--no-dpg'}; {where}")

    def scheduler(self, sigmas: Sequence[float], iteration: int) -> "DPGScheduler":
        """The scheduler that takes the steps between `sigmas`, from 1 to 0; seed and training step draw its stochastic ones."""
        from dpg.scheduler import DPGScheduler

        names = ("eta", "window", "segments", "window_start", "window_width", "window_stride", "window_every")
        scheduler = DPGScheduler(
            sampler="ode" if self.loss == "neighbor" else self.sampler,
            lambda_kind=self.lam_schedule if self.dpg else "zero",
            lambda_max=self.lam_max,
            lambda_target="mean" if self.anchor == "none" else "anchor",
            **{name: getattr(self, name) for name in names},
        )
        scheduler.set_timesteps(sigmas=list(sigmas[:-1]))
        scheduler.draw(self.seed, iteration=iteration, record=True, steps=[] if self.plain_rollouts else None)
        return scheduler

    def check_sampling(self) -> None:
        """ConfigError where the window does not fit, the sampler refuses eta, or no step can be stochastic, before a model is loaded."""
        sigmas = [1 - step / self.num_steps for step in range(self.num_steps + 1)]
        try:
            scheduler = self.scheduler(sigmas, 0)
            if drawn := scheduler.drawn_steps:
                scheduler.sampler.coefficients(sigmas[drawn[0]], sigmas[drawn[0] + 1])
        except ValueError as error:
            raise ConfigError("--window-" * str(error).startswith(("start ", "width ")) + str(error)) from error
        if not drawn and not self.plain_rollouts:
            given = f"--num-steps {self.num_steps}, --window {self.window}, --lam-max {self.lam_max}"
            never = "(the last one never is, nor one with guidance 1)"
            raise ConfigError(f"{given}: no step can be stochastic {never}; take more steps or less guidance")

    @property
    def plain_rollouts(self) -> bool:
        """Whether candidates are drawn by the plain ODE, without a stochastic step."""
        return self.loss == "nft" and not self.dpg

    @property
    def objective(self) -> "Loss":
        """What an update minimises."""
        from policies.retoucher.update import Loss

        return Loss(method=self.loss, **{field.name: getattr(self, field.name) for field in fields(Loss) if hasattr(self, field.name)})

    @property
    def learns_from_anchors(self) -> bool:
        """Whether training needs the photos' anchors: to pull towards, or to learn from."""
        return (self.dpg or self.anchor_weight > 0) and self.anchor != "none"

    @property
    def evaluation_steps(self) -> int:
        """Sampling steps of an evaluation."""
        return self.eval_num_steps or self.num_steps
