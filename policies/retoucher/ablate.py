"""The ablation: what do the parts of Dynamic Path Guidance do, and what do other losses reach at its cost?

The arms of `arms.toml`, equal network evaluations, several seeds; judged on held-out photos by the anchor-free ODE. Finished runs are kept
in `ablation.jsonl`, so that an interrupted ablation goes on where it stopped.
"""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from policies.retoucher.backbones import load_backbone
from policies.retoucher.config import RetoucherConfig, idle_options
from policies.retoucher.evaluate import Evaluation, EvaluationSet, compare, evaluate_policy
from policies.retoucher.micro_batch import MicroBatch
from policies.retoucher.model.adapter import check_start
from policies.retoucher.model.encoding_cache import open_cache, with_cache
from policies.retoucher.model.loading import loading_options
from policies.retoucher.photos import PhotoSource, open_photos, read_photos
from policies.retoucher.report.ablation_plots import ablation_plot, ablation_table_markdown
from policies.retoucher.run import open_rewards
from policies.retoucher.trainer import Trainer, make_evaluation_sets
from portraitkit.errors import ConfigError, nearest
from portraitkit.parallel import launched_processes
from portraitkit.runs.folder import open_run
from portraitkit.runs.interrupt import Interruptible
from reward_models.reward_set import RewardSet

ARMS: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("arms.toml").read_text(encoding="utf-8"))
"""What distinguishes each arm; everything else is the recipe's."""


def run_ablation(config: RetoucherConfig, command: list[str]) -> int:
    """Run every arm with every seed, then write ablation.md and ablation.png into the run folder; returns the exit code."""
    console = Console(stderr=True)
    if config.report_to or config.resume_from_checkpoint is not None:
        raise ConfigError("--ablate takes no --report-to and no --resume-from-checkpoint: it goes on by itself, and writes ablation.jsonl")
    if launched_processes() > 1:
        raise ConfigError("--ablate: its runs are trained in one process each; start it without torchrun or accelerate launch")
    if unknown := next((name for name in config.ablate_arms if name not in ARMS), None):
        raise ConfigError(f"--ablate-arms {unknown}: no such arm{nearest(unknown, ARMS)}; known: {', '.join(ARMS)}")
    budget = config.max_network_evaluations or _default_budget(config)
    # Every run's settings are checked here, before the first is trained.
    runs = [
        (arm, arm_config(replace(config, seed=seed, max_network_evaluations=budget), arm))
        for seed in range(config.seed, config.seed + config.ablate_seeds)
        for arm in config.ablate_arms or ARMS
    ]
    if config.init_adapter is not None:
        check_start(config.init_adapter, config.rank, config.lora_alpha)
    with open_rewards(config, console) as rewards:
        photos = read_photos(config.photos, config.cache_dir, console)
        loaded = load_backbone(config.backbone, config.model, config.resolution, config.device, **loading_options(config))
        backbone = with_cache(loaded, config)
        source = open_photos(photos, backbone.resolution, config.anchors, config.device)
        resume = "latest" if (Path(config.output_dir) / "ablation.jsonl").is_file() and not config.overwrite else None
        with open_run(config, command, resume=resume, report_to=[]) as run, Interruptible() as interrupt:
            kept = run.path / "ablation.jsonl"
            kept.touch()
            rows = [json.loads(line) for line in kept.read_text().splitlines()]
            open_cache(backbone, config)
            steps, fitting = config.evaluation_steps, MicroBatch(config.micro_batch)
            sets = make_evaluation_sets(config, backbone, source)
            base = [evaluate_policy(backbone, data, rewards, steps, pictures=False, fitting=fitting) for data in sets]
            for arm, settings in runs:
                if any(row["arm"] == arm and row["seed"] == settings.seed for row in rows):
                    continue
                row = _run_arm(settings, source, rewards, list(zip(sets, base, strict=True)), interrupt)
                if row is None:
                    console.print("stopped; the same command goes on with the runs that are missing")
                    return interrupt.exit_code
                gain, seconds = row["reward_gain"], row["seconds"]
                console.print(f"{arm}, seed {settings.seed}: held-out reward {gain:+.3f} in {seconds:.0f} s", highlight=False)
                rows.append({"arm": arm, "settings": ARMS[arm], **row})
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                (run.path / "ablation.md").write_text(ablation_table_markdown(rows), encoding="utf-8")
            ablation_plot(rows, run.path / "ablation.png")
            run.write_json("summary.json", {"rows": rows, "network_evaluations_per_run": budget})
            console.print(ablation_table_markdown(rows), highlight=False, soft_wrap=True)
    return 0


def arm_config(config: RetoucherConfig, arm: str) -> RetoucherConfig:
    """The settings of one arm: its own, and defaults for what its loss has no use for; ConfigError where they contradict each other."""
    own = {"ablate": False, "ablate_arms": ()} | ARMS[arm]
    idle = idle_options(own.get("loss", config.loss), own.get("dpg", config.dpg))
    return replace(config, **({name: getattr(RetoucherConfig, name) for name in idle} | own))


def _default_budget(config: RetoucherConfig) -> int:
    """What the DPG arm spends in `max_train_steps`, about: prefix and first drawn step shared, K steps trained."""
    per_candidate = (1 - 1 / (2 * config.segments)) * config.num_steps + (3 + (config.kl_beta > 0)) * (config.segments - 1)
    return int(config.max_train_steps * config.photos_per_step * config.group_size * per_candidate)


def _run_arm(
    config: RetoucherConfig, source: PhotoSource, rewards: RewardSet, sets: list[tuple[EvaluationSet, Evaluation]], interrupt: Interruptible
) -> dict[str, Any] | None:
    loaded = load_backbone(config.backbone, config.model, config.resolution, config.device, **loading_options(config))
    backbone = with_cache(loaded, config)
    open_cache(backbone, config)
    trainer = Trainer(config, backbone, source, rewards, Console(stderr=True))
    steps: list[dict[str, float]] = []
    while not trainer.out_of_budget():
        result = trainer.train_step()
        steps.append({"rollout_reward": float(result.rewards.nanmean()), "diversity": result.diversity})
        if interrupt.requested:
            return None
    validation, changes = (compare(base, trainer.evaluate(data, trainer.current(), pictures=False)) for data, base in sets)
    gain, evaluations, seconds = changes["reward"].gain, trainer.progress.evaluations, trainer.progress.seconds
    return {
        "seed": config.seed,
        "reward_gain": gain,
        "ci_low": changes["reward"].ci95[0],
        "ci_high": changes["reward"].ci95[1],
        "validation_gain": validation["reward"].gain,
        "gain_per_1000_evaluations": 1000 * gain / evaluations,
        "gain_per_minute": 60 * gain / seconds,
        "identity_distance_gain": changes["identity_distance"].gain,
        **{name: changes[name].after for name in ("blemish_residual", "texture_error", "tone_error", "residual_grain")},
        "diversity_first": fmean(step["diversity"] for step in steps[:5]),
        **{name: fmean(step[name] for step in steps[-5:]) for name in steps[0]},
        "seconds": seconds,
        "train_steps": trainer.progress.step,
        "network_evaluations": evaluations,
    }
