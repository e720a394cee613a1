"""The alignment loop of `align-retoucher`: roll out, score, compare inside groups, update, validate by the ODE, keep the best."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import LoraConfig
from rich.console import Console
from torch import Tensor

from policies.retoucher.alarms import Alarm, Alarms
from policies.retoucher.config import RetoucherConfig
from policies.retoucher.evaluate import Evaluation, EvaluationSet, evaluate_policy, evaluation_set
from policies.retoucher.micro_batch import MicroBatch
from policies.retoucher.model.adapter import load_lora, save_lora
from policies.retoucher.model.backbone import Backbone, sample_ode
from policies.retoucher.model.training import make_optimizer, prepare_training
from policies.retoucher.photos import PhotoSource
from policies.retoucher.processes import Processes
from policies.retoucher.rank_groups import NO_SCORES, RANKED_GROUPS, GroupScores, RankGroups, gather_scores, judge_figures, roll_out_groups
from policies.retoucher.rollout import mix
from policies.retoucher.update import (
    NO_FIGURES,
    UpdateFigures,
    accumulate_forward_gradients,
    accumulate_gradients,
    base_policy,
    draw_anchors,
    forward_noise,
)
from portraitkit.errors import TrainingStopped
from portraitkit.grpo import group_advantages, local_advantages, per_reward_advantages, quasi_norm_weights
from portraitkit.runs.checkpoint import flatten_optimizer, restore_optimizer
from reward_models.credit import local_credit, to_tokens
from reward_models.reward_set import RewardSet

FIRST_RATIO = 1e-2  # Largest |ratio - 1| before the first update; rounding alone stays far below

EVALUATION_NOISE = 7  # Seed of the initial noise of every evaluation, the same before and after training
OLD_POLICY_RISE = 0.001  # By which the old policy's weight in its moving average rises a training step; DiffusionNFT's schedule
MOST_BAD_UPDATES = 5  # In a row, with a loss or gradient that is not finite; then a run stops


@dataclass
class Progress:
    """What a checkpoint must hold beside weights and optimiser."""

    step: int = 0  # training steps done
    evaluations: int = 0  # network evaluations spent on training (rollouts and updates; a backward counts as two)
    seconds: float = 0.0  # spent on training
    best_reward: float = float("-inf")  # best validation reward so far
    best_step: int = 0  # where it was reached
    bad_updates: int = 0  # updates in a row that were skipped for a value that is not finite
    skipped_updates: int = 0  # all such updates
    zero_groups: int = 0  # groups without spread so far
    unscorable: int = 0  # candidates that could not be scored so far
    judge_asked: int = 0  # answers that training asked of judges
    judge_unreadable: int = 0  # of them, those that broke the contract or never came
    # rank correlations of judge and verifiable rewards inside the first groups, overall and by dimension
    judge_ranks: dict[str, list[float]] = field(default_factory=dict)
    owes_validation: bool = False  # the validation after this step is not done yet
    rollout_reward: float = 0.0  # of this step, while that is so


@dataclass(frozen=True)
class StepResult:
    """What one training step saw, for logs and alarms; `judged` has the judge's figures, empty without one; `waited`, in seconds, is how
    long the update waited for rewards after the last candidate was there."""

    parts: dict[str, Float[Tensor, " members"]]
    rewards: Float[Tensor, " members"]
    spread: float
    diversity: float
    figures: list[UpdateFigures]
    gradient_norm: float
    zero_groups: int
    judged: dict[str, float]
    waited: float


class Trainer:
    """One policy being aligned. Every random draw follows from the seed and the step, so that a resumed run equals an uninterrupted one."""

    def __init__(
        self,
        config: RetoucherConfig,
        backbone: Backbone,
        source: PhotoSource,
        rewards: RewardSet,
        console: Console,
        processes: Processes | None = None,
    ) -> None:
        self.config, self.backbone, self.source, self.rewards, self.console = config, backbone, source, rewards, console
        self.processes = processes or Processes(device=config.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            adapter = LoraConfig(
                r=config.rank, lora_alpha=config.lora_alpha, target_modules=backbone.lora_targets, init_lora_weights="gaussian"
            )
            backbone.transformer.add_adapter(adapter)
        prepare_training(backbone.transformer, gradient_checkpointing=config.gradient_checkpointing)
        if config.init_adapter is not None:
            load_lora(backbone.transformer, config.init_adapter)
        self.adapter = {name: p for name, p in backbone.transformer.named_parameters() if p.requires_grad}
        self.processes.copy_from_first(self.adapter.values())
        rates = {"learning_rate": config.learning_rate, "weight_decay": config.weight_decay}
        self.optimizer = make_optimizer(config.optimizer, list(self.adapter.values()), **rates)
        self.average = {name: p.detach().clone() for name, p in self.adapter.items()}
        self.best = {name: p.detach().clone() for name, p in self.adapter.items()}
        self.old = {name: p.detach().clone() for name, p in self.adapter.items()} if config.old_policy_decay > 0 else {}
        self.progress = Progress()
        self.alarms = Alarms()
        self.sigmas = backbone.sigmas(config.num_steps)

        def say(line: str) -> None:
            console.print(f"[yellow]{line}[/yellow]", soft_wrap=True)

        options: dict[str, Any] = {"say": say, "fixed": config.sharding != "none"}
        self.sampling_batch = MicroBatch(config.micro_batch, "sampling", **options)
        self.update_batch = MicroBatch(config.micro_batch, "update", **options)

    def out_of_budget(self) -> bool:
        """Whether the run has had its training steps or its network evaluations."""
        limit = self.config.max_network_evaluations
        return (limit > 0 and self.progress.evaluations >= limit) or (limit == 0 and self.progress.step >= self.config.max_train_steps)

    # ---- one training step

    def train_step(self) -> StepResult:
        """Roll out a group for each photo, score the candidates, and update the policy.
        TrainingStopped: too many candidates unscorable, or too many updates in a row not finite."""
        config, step, started = self.config, self.progress.step, time.monotonic()
        scheduler = config.scheduler(self.sigmas, step)
        groups = self.processes.share(config.photos_per_step)
        shared = (self.backbone, self.source, self.rewards, scheduler, config, step, groups, self.sampling_batch)
        with self.using(self.old) if self.old else nullcontext():
            rolled, scores = self.processes.together(lambda: roll_out_groups(*shared) if groups else (None, NO_SCORES))
        scores = gather_scores(self.processes, scores, config.group_size)
        group_of = torch.arange(config.photos_per_step).repeat_interleave(config.group_size)
        judged, ranks = judge_figures(self.rewards, scores, group_of)
        self.progress.judge_asked += int(judged.get("judge_asked", 0))
        self.progress.judge_unreadable += int(judged.get("judge_unreadable", 0))
        if step * config.photos_per_step < RANKED_GROUPS:
            for name, some in ranks.items():
                self.progress.judge_ranks.setdefault(name, []).extend(some)
        rewards = self.rewards.combined(scores.parts)
        if config.advantage == "combined":
            advantages = group_advantages(rewards, group_of, global_std=config.global_std)
        else:
            scored = {name: self.rewards.drop_unscored(part, scores.parts) for name, part in scores.parts.items()}
            advantages = per_reward_advantages(scored, group_of, self.rewards.weights, config.advantage)
        self.progress.evaluations += scores.evaluations
        self.progress.zero_groups += advantages.zero_groups
        self.progress.unscorable += advantages.unscorable
        if advantages.unscorable > config.max_unscorable * len(rewards):
            raise TrainingStopped(
                f"step {step}: {advantages.unscorable} of {len(rewards)} candidates could not be scored, more than "
                f"--max-unscorable {config.max_unscorable}; look at the photos {', '.join(scores.ids)}"
            )
        values = None if rolled is None else self._rank_advantages(rolled, scores, rewards, advantages.values, group_of)
        figures, norm = [], 0.0
        for photos in torch.arange(config.photos_per_step).chunk(config.updates_per_step):
            part, norm = self._update(rolled, values, photos.tolist(), scores.ids)
            figures.append(part)
        if step == 0 and figures[0].ratio_deviation > FIRST_RATIO:
            raise TrainingStopped(
                f"step 0: the likelihood ratio is off 1 by {figures[0].ratio_deviation:.1e} before any update (at most {FIRST_RATIO}): the "
                "backbone answers differently with gradients than without; turn off dropout and every other source of chance in it"
            )
        self._follow(self.old, min(OLD_POLICY_RISE * step, config.old_policy_decay))
        self.progress.step += 1
        self.progress.seconds += time.monotonic() - started
        spread, diversity = rewards.view(-1, config.group_size).std(1).nanmean(), scores.diversity / config.photos_per_step
        return StepResult(scores.parts, rewards, float(spread), diversity, figures, norm, advantages.zero_groups, judged, scores.waited)

    def _rank_advantages(self, rolled: RankGroups, scores: GroupScores, rewards: Tensor, values: Tensor, groups: Tensor) -> Tensor:
        """Advantages of this process's candidates, one each, or one a token of each; they are compared inside groups alone then."""
        mine = torch.isin(groups, torch.tensor(rolled.groups))
        neighbor = self.config.loss == "neighbor"
        weights = (quasi_norm_weights(values, groups, self.config.advantage_p) if neighbor else torch.ones_like(values))[mine]
        if self.config.credit != "local":
            return values[mine] * weights
        parts = {name: part[mine] for name, part in scores.parts.items()}
        photo_of = rolled.rollout.photo_of
        credit = local_credit(rolled.candidates, rolled.photos, photo_of, self.rewards, parts)
        return weights[:, None] * to_tokens(local_advantages(credit, rewards[mine], photo_of), rolled.rollout.latents.shape[1])

    def _update(
        self, rolled: RankGroups | None, advantages: Tensor | None, photos: list[int], ids: list[str]
    ) -> tuple[UpdateFigures, float]:
        """One optimiser step on some groups of the training step, whichever processes have them."""
        config, step = self.config, self.progress.step
        warm = min(1.0, (step + 1) / max(1, config.warmup_steps))  # functions of the step alone need no state
        falling = max(0.0, 1 - step / config.max_train_steps) if config.lr_scheduler == "linear" else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * (warm * falling)
        self.optimizer.zero_grad(set_to_none=True)
        figures = NO_FIGURES
        if rolled is not None and advantages is not None:
            rows = torch.tensor([row for row, group in enumerate(rolled.groups) if group in photos], dtype=torch.long)
            neighbor, drawn = config.loss == "neighbor", {"seed": config.seed, "iteration": self.progress.step}
            count = len(photos) * (config.neighbor_anchors if neighbor else config.group_size)
            given = (self.backbone, rolled.condition, rolled.rollout, advantages, rows, config.objective)
            learn, more = accumulate_gradients, {"in_step": self.processes.largest if config.sharding == "fsdp2" else None}
            if neighbor:
                more["anchors"] = draw_anchors(rolled.groups, config.group_size, config.neighbor_anchors, **drawn)
            if config.loss == "nft":
                noise = forward_noise(self.backbone, self.sigmas, config.noise_levels, rolled.groups, **drawn)
                old = partial(self.using, self.old) if self.old else None
                learn, more = accumulate_forward_gradients, {"noise": noise, "anchors": rolled.anchors, "old_policy": old}

            def accumulate(batch: int) -> UpdateFigures:
                self.optimizer.zero_grad(set_to_none=True)  # an attempt that ran out of memory has left some
                return learn(*given, micro_batch=batch, candidates=count, **more)

            figures = self.update_batch.fit(len(rows) * config.group_size, accumulate)
        figures = UpdateFigures.total(self.processes.gather(figures))
        self.processes.sum_gradients(self.adapter.values())
        self.progress.evaluations += figures.evaluations
        norm = torch.nn.utils.clip_grad_norm_(self.adapter.values(), config.max_grad_norm)
        if not (torch.isfinite(norm) and torch.isfinite(torch.tensor(figures.loss))):
            self._skip_update(ids, photos, figures.loss, float(norm))
            return figures, float(norm)
        self.progress.bad_updates = 0
        self.optimizer.step()
        self._follow(self.average, config.ema_decay)
        return figures, float(norm)

    def _follow(self, average: dict[str, Tensor], decay: float) -> None:
        """Move an average of the policy's weights, none if it is not kept, towards them."""
        with torch.no_grad():
            for name, value in average.items():
                value.lerp_(self.adapter[name], 1 - decay)

    def _skip_update(self, ids: list[str], photos: list[int], loss: float, norm: float) -> None:
        self.progress.bad_updates += 1
        self.progress.skipped_updates += 1
        bad = [name for name, p in self.adapter.items() if p.grad is not None and not p.grad.isfinite().all()]
        named = ", ".join(ids[i] for i in photos)
        self.console.print(
            f"[yellow]step {self.progress.step}: update skipped, loss {loss} and gradient norm {norm} (photos {named}; "
            f"{len(bad)} tensors not finite, first {bad[:1]})[/yellow]"
        )
        self.optimizer.zero_grad(set_to_none=True)
        if self.progress.bad_updates > MOST_BAD_UPDATES:
            raise TrainingStopped(
                f"step {self.progress.step}: {self.progress.bad_updates} updates in a row were not finite (loss {loss}, photos {named}); "
                "lower --learning-rate or resume from an earlier checkpoint"
            )

    # ---- evaluation

    def use(self, weights: dict[str, Tensor]) -> None:
        """Put adapter weights in place."""
        with torch.no_grad():
            for name, parameter in self.adapter.items():
                parameter.copy_(weights[name])

    @contextmanager
    def using(self, weights: dict[str, Tensor]) -> Iterator[None]:
        """Adapter weights in place for a while."""
        before = {name: p.detach().clone() for name, p in self.adapter.items()}
        self.use(weights)
        try:
            yield
        finally:
            self.use(before)

    def current(self) -> dict[str, Tensor]:
        """The weights to evaluate: the moving average where one is kept, else the policy itself."""
        chosen = self.average if self.config.ema_decay > 0 else self.adapter
        return {name: p.detach().clone() for name, p in chosen.items()}

    def evaluate(self, data: EvaluationSet, weights: dict[str, Tensor] | None, *, pictures: bool = True) -> Evaluation:
        """Evaluate given adapter weights, or the base policy (None), by the anchor-free ODE; without `pictures`, values are enough."""
        steps, options = self.config.evaluation_steps, {"pictures": pictures, "fitting": self.sampling_batch}
        with base_policy(self.backbone) if weights is None else self.using(weights):
            return evaluate_policy(self.backbone, data, self.rewards, steps, self.processes, **options)

    def validate(self, data: EvaluationSet) -> Evaluation:
        """Evaluate the current policy on the validation set and remember it if it is the best so far."""
        evaluation = self.evaluate(data, self.current(), pictures=False)
        reward = evaluation.means()["reward"]
        if reward > self.progress.best_reward:
            self.progress.best_reward, self.progress.best_step = reward, self.progress.step
            self.best = self.current()
        return evaluation

    def ode_reward(self, photos: list[int]) -> float:
        """Mean reward of the plain ODE on training photos, to set beside the rollouts' reward on the same photos at as many steps."""
        rows = self.processes.share(len(photos))
        generator = torch.Generator().manual_seed(mix(self.config.seed, self.progress.step, 1))
        noise = self.backbone.noise(len(photos), generator)[rows]

        def rank_rewards() -> Tensor:
            if not rows:
                return torch.empty(0)
            batch = self.source.load("train", [photos[row] for row in rows])
            condition = self.backbone.condition(batch.photos.source, self.config.prompt)
            steps = self.config.num_steps
            pictures = self.sampling_batch.fit(len(rows), lambda batch: sample_ode(self.backbone, condition, noise, steps, batch))
            return self.rewards.combined(self.rewards.parts(pictures, batch.photos))

        return float(self.processes.in_order(self.processes.gather(self.processes.together(rank_rewards))).nanmean())

    def chosen(self) -> dict[str, Tensor]:
        """The weights the run ends with: the best validated ones, or the last."""
        return self.best if self.config.keep_best else self.current()

    # ---- state

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything a checkpoint holds as tensors."""
        return {
            "adapter": {name: p.detach() for name, p in self.adapter.items()},
            "average": self.average,
            "best": self.best,
            "optimizer": flatten_optimizer(self.optimizer),
            **({"old": self.old} if self.old else {}),
        }

    def state(self) -> dict[str, object]:
        """Everything else a checkpoint holds."""
        return {
            "processes": self.processes.count,
            "progress": asdict(self.progress),
            "alarms": [asdict(alarm) for alarm in self.alarms.raised],
            "first_validation": copy.deepcopy(self.alarms.first),
            "judge_courses": [list(pair) for pair in self.alarms.courses],
            "judge_agreements": list(self.alarms.agreements),
            "diversities": list(self.alarms.diversities),
            "sound": self.alarms.sound,
        }

    def restore(self, tensors: dict[str, dict[str, Tensor]], state: dict) -> None:
        """Continue from a checkpoint's tensors and state."""
        self.use(tensors["adapter"])
        for name, values in {"average": self.average, "best": self.best, "old": self.old}.items():
            for key, value in values.items():
                value.copy_(tensors.get(name, tensors["adapter"])[key])  # in place: a checkpoint is read onto the CPU
        restore_optimizer(self.optimizer, tensors["optimizer"])
        self.progress = Progress(**state["progress"])
        self.alarms.raised = [Alarm(**alarm) for alarm in state["alarms"]]
        self.alarms.first = dict(state["first_validation"])
        self.alarms.courses = [(judge, check) for judge, check in state.get("judge_courses", [])]
        self.alarms.agreements, self.alarms.diversities = (list(state.get(name, [])) for name in ("judge_agreements", "diversities"))
        self.alarms.sound = state.get("sound", 0)

    def save_adapter(self, folder: Path) -> None:
        """Write the chosen weights as a LoRA that stock diffusers loads."""
        with self.using(self.chosen()):
            save_lora(self.backbone.transformer, folder)


def make_evaluation_sets(config: RetoucherConfig, backbone: Backbone, source: PhotoSource) -> tuple[EvaluationSet, EvaluationSet]:
    """The validation set (used to choose) and the held-out set (used to report)."""
    sizes = {"validation": config.validation_photos, "held_out": config.held_out_photos}
    how: dict[str, Any] = {"prompt": config.prompt, "noise_seed": EVALUATION_NOISE}
    made = [evaluation_set(backbone, source, split, count, **how) for split, count in sizes.items()]
    return made[0], made[1]
