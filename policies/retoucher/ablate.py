"""The ablation of Dynamic Path Guidance: what does the anchor do, and what do fewer and quieter stochastic steps do?

Six arms, equal network evaluations, several seeds; judged on held-out photos by the anchor-free ODE. Finished runs are kept in
`ablation.jsonl`, so that an interrupted ablation goes on where it stopped.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from policies.retoucher.backbones import load_backbone
from policies.retoucher.config import RetoucherConfig
from policies.retoucher.evaluate import Evaluation, EvaluationSet, compare
from policies.retoucher.model.adapter import check_start
from policies.retoucher.model.encoding_cache import open_cache, with_cache
from policies.retoucher.model.loading import loading_options
from policies.retoucher.photos import PhotoSource, open_photos, read_photos
from policies.retoucher.report.ablation_plots import ablation_plot, ablation_table_markdown
from policies.retoucher.run import open_rewards
from policies.retoucher.trainer import Trainer, make_evaluation_sets
from portraitkit.errors import ConfigError
from portraitkit.parallel import launched_processes
from portraitkit.runs.folder import open_run
from portraitkit.runs.interrupt import Interruptible
from reward_models.reward_set import RewardSet

ARMS: dict[str, dict[str, object]] = {
    "all-step SDE": {"dpg": False, "window": "all"},
    "K-step SDE": {"dpg": False, "window": "segments"},
    "K-step, attenuated, no anchor": {"dpg": True, "window": "segments", "anchor": "none"},
    "DPG": {"dpg": True, "window": "segments", "anchor": "label"},
    "DPG, wrong anchor": {"dpg": True, "window": "segments", "anchor": "wrong"},
    "CPS, K steps": {"dpg": False, "window": "segments", "sampler": "cps"},
}
"""What distinguishes each arm; everything else is the recipe's."""


def run_ablation(config: RetoucherConfig, command: list[str]) -> int:
    """Run every arm with every seed, then write ablation.md and ablation.png into the run folder; returns the exit code."""
    console = Console(stderr=True)
    if config.report_to or config.resume_from_checkpoint is not None:
        raise ConfigError("--ablate takes no --report-to and no --resume-from-checkpoint: it goes on by itself, and writes ablation.jsonl")
    if launched_processes() > 1:
        raise ConfigError("--ablate: its runs are trained in one process each; start it without torchrun or accelerate launch")
    budget = config.max_network_evaluations or _default_budget(config)
    # Every run's settings are checked here, before the first is trained.
    runs = [
        (arm, replace(config, seed=seed, max_network_evaluations=budget, **changes))
        for seed in range(config.seed, config.seed + config.ablate_seeds)
        for arm, changes in ARMS.items()
    ]
    if config.init_adapter is not None:
        check_start(config.init_adapter, config.rank, config.lora_alpha)
    with open_rewards(config, console) as rewards:
        return _run_arms(config, runs, budget, command, rewards, console)


def _run_arms(
    config: RetoucherConfig, runs: list[tuple[str, RetoucherConfig]], budget: int, command: list[str], rewards: RewardSet, console: Console
) -> int:
    photos = read_photos(config.photos, config.cache_dir, console)
    loaded = load_backbone(config.backbone, config.model, config.resolution, config.device, **loading_options(config))
    backbone = with_cache(loaded, config)
    source = open_photos(photos, backbone.resolution, config.anchors, config.device)
    resume = "latest" if (Path(config.output_dir) / "ablation.jsonl").is_file() and not config.overwrite else None
    with open_run(config, command, resume=resume, report_to=[]) as run, Interruptible() as interrupt:
        kept = run.path / "ablation.jsonl"
        kept.touch()
        rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
        open_cache(backbone, config)
        _, held_out = make_evaluation_sets(config, backbone, source)
        for arm, arm_config in runs:
            if any(row["arm"] == arm and row["seed"] == arm_config.seed for row in rows):
                continue
            row = _run_arm(arm_config, source, rewards, held_out, console, interrupt)
            if row is None:
                console.print("stopped; the same command goes on with the runs that are missing")
                return interrupt.exit_code
            gain, seconds = row["reward_gain"], row["seconds"]
            console.print(f"{arm}, seed {arm_config.seed}: held-out reward {gain:+.3f} in {seconds:.0f} s", highlight=False)
            row = {"arm": arm, **row}
            rows.append(row)
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        (run.path / "ablation.md").write_text(ablation_table_markdown(rows), encoding="utf-8")
        ablation_plot(rows, run.path / "ablation.png")
        run.write_json("summary.json", {"rows": rows, "network_evaluations_per_run": budget})
        console.print(ablation_table_markdown(rows), highlight=False, soft_wrap=True)
    return 0


def _default_budget(config: RetoucherConfig) -> int:
    """What the DPG arm spends in `max_train_steps`, about: prefix and first drawn step shared, K steps trained."""
    per_candidate = (1 - 1 / (2 * config.segments)) * config.num_steps + 3 * (config.segments - 1)
    return int(config.max_train_steps * config.photos_per_step * config.group_size * per_candidate)


def _run_arm(
    config: RetoucherConfig, source: PhotoSource, rewards: RewardSet, held_out: EvaluationSet, console: Console, interrupt: Interruptible
) -> dict[str, Any] | None:
    loaded = load_backbone(config.backbone, config.model, config.resolution, config.device, **loading_options(config))
    backbone = with_cache(loaded, config)
    open_cache(backbone, config)
    trainer = Trainer(config, backbone, source, rewards, console)
    base: Evaluation = trainer.evaluate(held_out, None)
    rollout_rewards: list[float] = []
    started = time.monotonic()
    while not trainer.out_of_budget():
        rollout_rewards.append(float(trainer.train_step().rewards.nanmean()))
        if interrupt.requested:
            return None
    seconds = time.monotonic() - started
    aligned = trainer.evaluate(held_out, trainer.current())
    changes = compare(base, aligned)
    return {
        "seed": config.seed,
        "reward_gain": changes["reward"].gain,
        "ci_low": changes["reward"].ci95[0],
        "ci_high": changes["reward"].ci95[1],
        "identity_distance_gain": changes["identity_distance"].gain,
        "residual_grain": changes["residual_grain"].after,
        "texture_error": changes["texture_error"].after,
        "blemish_residual": changes["blemish_residual"].after,
        "seconds": seconds,
        "train_steps": trainer.progress.step,
        "network_evaluations": trainer.progress.evaluations,
        "rollout_reward": sum(rollout_rewards[-5:]) / len(rollout_rewards[-5:]),
    }
