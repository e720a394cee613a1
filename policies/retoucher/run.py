"""One run of `align-retoucher`: open the folder, train with checkpoints, report on held-out photos."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import set_seed
from rich.console import Console
from rich.table import Column, Table

from policies.retoucher.alarms import SERIOUS, Alarm
from policies.retoucher.backbones import load_backbone
from policies.retoucher.config import RetoucherConfig
from policies.retoucher.evaluate import Evaluation, EvaluationSet, compare, measure
from policies.retoucher.micro_batch import ADVICE
from policies.retoucher.model.adapter import check_start
from policies.retoucher.model.backbone import Backbone
from policies.retoucher.model.encoding_cache import open_cache, with_cache
from policies.retoucher.model.loading import loading_options
from policies.retoucher.model.training import check_guidance, check_sharding, divide_base
from policies.retoucher.photos import PhotoFolder, PhotoSource, check_photos, open_photos, read_photos
from policies.retoucher.processes import Processes, open_processes
from policies.retoucher.rank_groups import RANKED_GROUPS, BestOfN
from policies.retoucher.report.report import FILES, write_overview, write_pictures, write_report, write_retoucher_card
from policies.retoucher.trainer import StepResult, Trainer, make_evaluation_sets
from portraitkit.errors import ConfigError, OutOfMemory, TrainingStopped, WorkersLost
from portraitkit.hub import open_repo, push_folder
from portraitkit.processor import describe_cpu_bf16, keep_freed_memory
from portraitkit.runs.checkpoint import check_processes, complete_checkpoints, find_checkpoint, load_checkpoint, save_checkpoint, step_of
from portraitkit.runs.folder import RunFolder, SilentRunFolder, check_run_folder, open_run
from portraitkit.runs.terminal import Interruptible, progress_bar
from portraitkit.stats import LEAST_PEOPLE, Change, GroupRank, group_rank, person_interval
from preference_data.pair_set import write_quarantine
from reward_models.learned import check_arcface
from reward_models.reward import GroupReward
from reward_models.reward_set import RewardSet, build_rewards, check_names, judged_reward
from reward_models.workers.client import RewardWorkers, connect

HEADLINE = ("reward", "identity_distance", "blemish_residual", "texture_error", "lip_dE")


def run_alignment(config: RetoucherConfig, command: list[str]) -> int:
    """Align one policy and write the run folder; returns the exit code (0, or 130 / 143 when interrupted and saved).

    Several processes, as `torchrun` starts them, share the work; the first one writes.
    """
    with open_processes(config.device) as processes:
        console = Console(stderr=True, quiet=not processes.first)
        processes.together(lambda: _check(config, processes))
        own = replace(config, device=processes.device)
        with ExitStack() as stack:
            rewards = processes.together(lambda: stack.enter_context(open_rewards(own, console)))
            try:
                return _align(own, config, command, rewards, console, processes)
            except torch.OutOfMemoryError as error:
                raise OutOfMemory(f"{str(error).partition('. ')[0]}; {ADVICE}") from error


@contextmanager
def open_rewards(config: RetoucherConfig, console: Console) -> Iterator[RewardSet]:
    """The rewards that the configuration names; workers are asked first, before anything is loaded or written."""
    workers = None
    if config.reward_worker:
        say = partial(console.print, style="yellow", markup=False, highlight=False, soft_wrap=True)
        limits = {"timeout": config.reward_worker_timeout, "patience": config.reward_worker_patience}
        check_names(config.all_rewards)
        workers = connect(config.reward_worker, config.all_rewards, say=say, **limits)
    try:
        yield build_rewards(config.all_rewards, config.reward_weights, config.combine, config.device, workers=workers)
    finally:
        if workers is not None:
            workers.close()


def _check(config: RetoucherConfig, processes: Processes) -> None:
    """What can be refused before anything is loaded."""
    config.check_sampling()
    check_sharding(config, processes.count)
    check_photos(config)
    check_arcface()
    if config.init_adapter is not None:
        check_start(config.init_adapter, config.rank, config.lora_alpha)
    folder, which = Path(config.output_dir), config.resume_from_checkpoint
    needed = {"--photos": config.photos, "--init-adapter": config.init_adapter}
    check_run_folder(folder, overwrite=config.overwrite, resume=which, report_to=list(config.report_to), needed=needed)
    if which is not None and (folder / "config.json").is_file():
        check_processes(find_checkpoint(folder, which), processes.count, allow_changed=config.allow_changed)


def _align(
    config: RetoucherConfig, asked: RetoucherConfig, command: list[str], rewards: RewardSet, console: Console, processes: Processes
) -> int:
    """Train and report; `asked` is the configuration as the run folder keeps it, the same in all processes."""
    started, folder = time.monotonic(), Path(config.output_dir)
    if config.device == "cpu":
        keep_freed_memory()
        if config.bf16_rollouts:
            console.print(describe_cpu_bf16(), highlight=False)
    repo = processes.only_first(lambda: open_repo(config.push_to_hub) if config.push_to_hub is not None else None)
    photos = processes.gather(processes.only_first(lambda: read_photos(config.photos, config.cache_dir, console)))[0]
    backbone, source, validation, held_out = processes.together(lambda: _load(config, photos, rewards))
    say = partial(console.print, style="yellow", markup=False, highlight=False, soft_wrap=True)
    for name, asked_for, data in (("validation", config.validation_photos, validation), ("held-out", config.held_out_photos, held_out)):
        if len(data.noise) < asked_for:
            say(f"--{name}-photos {asked_for}: there are {len(data.noise)}; each counts once")
    if (people := len(set(held_out.batch.people))) < LEAST_PEOPLE:
        say(f"too few held-out people ({people}) for a verdict: at least {LEAST_PEOPLE} are needed")

    with processes.only_first(lambda: open_run(asked, command)) or SilentRunFolder(folder) as run:
        processes.together(lambda: open_cache(backbone, config))
        processes.only_first(lambda: write_quarantine(run.path, photos.rejected if photos is not None else []))
        if bool(validation.batch.photos.clean.isnan().any()):
            fix = "look at the pictures, or give every photo an anchor_file_name, or --anchors painted"
            say(f"photos without an anchor: blemishes are guessed and over-smoothing can win (docs/rewards.md); {fix}")
        if config.anchors == "best-of-n":
            source = BestOfN(source, backbone, rewards, run.path / "anchors", config, say)
        trainer = processes.together(lambda: Trainer(config, backbone, source, rewards, console, processes))
        set_seed(config.seed)  # of the process's own generators, which nothing here draws from, but a user's reward may
        if config.resume_from_checkpoint is not None:
            which = config.resume_from_checkpoint
            checkpoint = processes.together(lambda: load_checkpoint(run.path, which))
            trainer.restore(checkpoint.tensors, checkpoint.state)
            run.truncate_metrics(checkpoint.step)
            console.print(checkpoint.note)
        try:
            with Interruptible() as interrupt:
                if isinstance(workers := rewards.elsewhere, RewardWorkers):
                    workers.give_up = lambda: interrupt.requested is not None
                try:
                    _train(trainer, validation, run, console, interrupt)
                except WorkersLost:
                    if not processes.stop_signal(interrupt):
                        raise
                if stopped_by := processes.stop_signal(interrupt):
                    _checkpoint(trainer, run)
                    console.print(f"stopped at step {trainer.progress.step}; go on with --resume-from-checkpoint latest")
                    return 128 + stopped_by
            _checkpoint(trainer, run)
            _finish(trainer, validation, held_out, run, console, started)
        except WorkersLost as error:  # a step or validation that had begun is done again on resume
            _checkpoint(trainer, run)
            saved = f"step {trainer.progress.step} is saved: start the workers and go on with --resume-from-checkpoint latest"
            raise WorkersLost(f"{error}; {saved}") from error
    if repo is not None:
        console.print(f"pushed: {push_folder(folder, repo, files=FILES)}", highlight=False)
    return 0


def _load(
    config: RetoucherConfig, photos: PhotoFolder | None, rewards: RewardSet
) -> tuple[Backbone, PhotoSource, EvaluationSet, EvaluationSet]:
    """The policy and the photos, those of the evaluations encoded: by every process, as each needs some of them."""
    place = config.device if config.sharding == "none" else "cpu"
    loaded = load_backbone(config.backbone, config.model, config.resolution, place, **loading_options(config))
    check_guidance(config, loaded)
    if config.sharding != "none":
        divide_base(loaded, config.device)
    backbone = with_cache(loaded, config)
    source = open_photos(photos, backbone.resolution, config.anchors, config.device)
    validation, held_out = make_evaluation_sets(config, backbone, source)
    needing = [name for name, function in rewards.functions.items() if isinstance(function, GroupReward) and function.needs_anchors]
    if needing and bool(validation.batch.photos.clean.isnan().any()):
        raise ConfigError(f"--reward {needing[0]}: needs an anchor_file_name for every photo; add them, or use judge:PATH:score")
    return backbone, source, validation, held_out


def _finish(trainer: Trainer, validation: EvaluationSet, held_out: EvaluationSet, run: RunFolder, console: Console, started: float) -> None:
    """Measure on the held-out photos, and write what the run ends with."""
    trainer.processes.only_first(lambda: trainer.save_adapter(run.path))  # what was trained is there, whatever becomes of its evaluation
    base = trainer.evaluate(held_out, None)
    aligned = trainer.evaluate(held_out, trainer.chosen())

    def write() -> None:
        changes = compare(base, aligned)
        untouched = measure(held_out.batch.photos.source, held_out, trainer.rewards)
        write_pictures(run.path / "held_out", held_out, base, aligned)
        facts = _summary(trainer, changes, untouched, time.monotonic() - started)
        run.write_json("summary.json", facts | _counts(trainer, validation, held_out))
        write_overview(run.path / "held_out", run.path / "overview.png")
        report = write_report(run.path)
        write_retoucher_card(run.path, trainer.backbone.base_model, trainer.backbone.licence)
        _print_result(console, changes, report)

    trainer.processes.only_first(write)


def _train(trainer: Trainer, validation: EvaluationSet, run: RunFolder, console: Console, interrupt: Interruptible) -> None:
    config, progress = trainer.config, trainer.progress
    with progress_bar(console, elapsed=True) as bar:
        task = bar.add_task("aligning", total=config.max_train_steps, completed=progress.step)
        if progress.step == 0 and not trainer.alarms.first:  # not again in a run that was stopped in its first step
            evaluation = trainer.validate(validation)
            judged = _judged(trainer, evaluation)
            trainer.alarms.after_validation(0, evaluation.means(), rollout_reward=None, ode_reward=None, judged=judged)
            _log_validation(run, 0, evaluation)
        if progress.owes_validation:
            _validate(trainer, validation, run, console)
        while not trainer.out_of_budget() and not trainer.processes.stop_signal(interrupt):
            result = trainer.train_step()
            _log_step(run, trainer, result)
            seen = {"spread": result.spread, "ratio_deviation": max(figures.ratio_deviation for figures in result.figures)}
            seen |= {"agreement": result.judged.get("judge_agreement"), "clip_range": config.clip_range, "diversity": result.diversity}
            _warn(trainer, run, console, trainer.alarms.after_step(progress.step, on_policy=config.updates_per_step == 1, **seen))
            _rank_judge(trainer, run, console)
            progress.rollout_reward = float(result.rewards.nanmean())
            said = f"rollout {progress.rollout_reward:.3f}±{result.spread:.3f} |ratio-1| {seen['ratio_deviation']:.0e}"
            said += f" grad {result.gradient_norm:.2g} best {progress.best_reward:.3f}"
            bar.update(task, completed=progress.step, description=said)
            if progress.step % config.validation_steps == 0 or trainer.out_of_budget():
                progress.owes_validation = True
                _validate(trainer, validation, run, console)
            if config.checkpointing_steps and progress.step % config.checkpointing_steps == 0:
                _checkpoint(trainer, run)


def _rank_judge(trainer: Trainer, run: RunFolder, console: Console) -> None:
    """Once, after the first groups of a run with a judge: say how it ranks the policy's own rollouts."""
    step, ranks = trainer.progress.step, judge_ranks(trainer)
    done, count = step * trainer.config.photos_per_step, trainer.config.photos_per_step
    last = done < RANKED_GROUPS and trainer.out_of_budget()
    if not ranks or not (last or RANKED_GROUPS <= done < RANKED_GROUPS + count):
        return
    by_name = ", ".join(f"{name.replace('_', ' ')} {rank.rank:.2f}" for name, rank in ranks.items() if name != "overall")
    found = f"judge: inside groups of this policy's rollouts its rank correlation with the verifiable rewards is {ranks['overall']}"
    console.print(f"{found}; {by_name}" if by_name else found, highlight=False, soft_wrap=True)
    run.log(step, kind="judge_rank", **{name: asdict(rank) for name, rank in ranks.items()})
    _warn(trainer, run, console, trainer.alarms.after_first_groups(step, ranks["overall"]))


def judge_ranks(trainer: Trainer) -> dict[str, GroupRank]:
    """How far the judge ranked the first groups as the verifiable rewards do, overall and by dimension; empty without a judge."""
    return {name: group_rank(ranks) for name, ranks in trainer.progress.judge_ranks.items()}


def _validate(trainer: Trainer, validation: EvaluationSet, run: RunFolder, console: Console) -> None:
    """The validation after a step; a run that is stopped in it still owes it."""
    progress, count = trainer.progress, trainer.config.photos_per_step
    evaluation = trainer.validate(validation)
    ode = trainer.ode_reward(list(range((progress.step - 1) * count, progress.step * count)))
    _log_validation(run, progress.step, evaluation, rollout_reward=progress.rollout_reward, ode_reward=ode)
    seen = {"rollout_reward": progress.rollout_reward, "ode_reward": ode, "judged": _judged(trainer, evaluation)}
    _warn(trainer, run, console, trainer.alarms.after_validation(progress.step, evaluation.means(), **seen))
    progress.owes_validation = False


def _judged(trainer: Trainer, evaluation: Evaluation) -> float | None:
    """Mean of the judges' values; None without a judge."""
    rewards = trainer.rewards
    return float(judged_reward(rewards, evaluation.values).nanmean()) if rewards.group_rewards else None


def _warn(trainer: Trainer, run: RunFolder, console: Console, alarms: list[Alarm]) -> None:
    for alarm in alarms:
        console.print(f"[yellow]step {alarm.step} {alarm.name}: {alarm.message}[/yellow]")
    if trainer.config.on_alarm == "stop" and (found := [alarm for alarm in alarms if alarm.name in SERIOUS]):
        good = [path for path in complete_checkpoints(run.path) if step_of(path) <= trainer.alarms.sound]
        back = f"go back with --resume-from-checkpoint {good[-1]}" if good else "no checkpoint is from before it: start anew"
        raise TrainingStopped(f"stopped at step {found[0].step}, {found[0].name}: {found[0].message}; {back}")


def _log_step(run: RunFolder, trainer: Trainer, result: StepResult) -> None:
    progress = trainer.progress
    run.log(
        progress.step,
        kind="train",
        reward=float(result.rewards.nanmean()),
        reward_std=result.spread,
        diversity=result.diversity,
        ratio_deviation=max(figures.ratio_deviation for figures in result.figures),
        gradient_norm=result.gradient_norm,
        **{name: sum(getattr(figures, name) for figures in result.figures) / len(result.figures) for name in ("clipped", "loss", "kl")},
        zero_groups=result.zero_groups,
        seconds=progress.seconds,
        **({"seconds_waiting_for_rewards": result.waited} if isinstance(trainer.rewards.elsewhere, RewardWorkers) else {}),
        network_evaluations=progress.evaluations,
        **result.judged,
        **{f"parts/{name}": float(value.nanmean()) for name, value in result.parts.items()},
    )


def _log_validation(run: RunFolder, step: int, evaluation: Evaluation, **extra: float) -> None:
    people = evaluation.person_of_photo()
    intervals = {f"{name}_ci95": list(person_interval(value, people, draws=2000)) for name, value in evaluation.by_photo().items()}
    run.log(step, kind="validation", **evaluation.means(), **intervals, **extra)


def _checkpoint(trainer: Trainer, run: RunFolder) -> None:
    """What the first process has is what all have."""
    step, limit = trainer.progress.step, trainer.config.checkpoints_total_limit
    trainer.processes.only_first(lambda: save_checkpoint(run.path, step, trainer.tensors(), trainer.state(), limit=limit))


def _summary(trainer: Trainer, changes: dict[str, Change], untouched: Evaluation, seconds: float) -> dict[str, object]:
    config, progress = trainer.config, trainer.progress
    counts = ("zero_groups", "unscorable", "skipped_updates")
    counts += ("judge_asked", "judge_unreadable") if trainer.rewards.group_rewards else ()
    return {
        "held_out": {name: asdict(change) for name, change in changes.items()},
        "untouched": untouched.means(),
        "seconds": progress.seconds,
        "seconds_total": seconds,
        "network_evaluations": progress.evaluations,
        "seeds": [config.seed],
        "processes": trainer.processes.count,
        "train_steps": progress.step,
        "best_step": progress.best_step if config.keep_best else progress.step,
        **{name: getattr(progress, name) for name in counts},
        "judge_rank": {name: asdict(rank) for name, rank in judge_ranks(trainer).items()},
        "alarms": [asdict(alarm) for alarm in trainer.alarms.raised],
        **({"reward_workers": workers.figures()} if isinstance(workers := trainer.rewards.elsewhere, RewardWorkers) else {}),
    }


def _counts(trainer: Trainer, validation: EvaluationSet, held_out: EvaluationSet) -> dict[str, dict[str, int]]:
    """How many photos and people each split gave; where nobody said who is in them, each photo is a person."""
    photos = trainer.progress.step * trainer.config.photos_per_step
    if (have := trainer.source.count("train")) is not None:
        photos = min(photos, have)
    batches = (validation.batch, held_out.batch)
    counts = {
        "photos": (photos, *(len(set(batch.ids)) for batch in batches)),
        "people": (min(photos, trainer.source.people.get("train", photos)), *(len(set(batch.people)) for batch in batches)),
    }
    return {name: dict(zip(("train", "validation", "held_out"), count, strict=True)) for name, count in counts.items()}


def _print_result(console: Console, changes: dict[str, Change], report: Path) -> None:
    figures = [Column(name, justify="right") for name in ("before", "after", "gain", "95 % interval")]
    table = Table("", *figures, title="Held-out photos, anchor-free ODE", title_justify="left")
    for name in HEADLINE:
        change = changes[name]
        low, high = change.ci95
        ends = f"[{low:+.3f}, {high:+.3f}]" if change.people >= LEAST_PEOPLE else f"too few people ({change.people})"
        table.add_row(name, f"{change.before:.3f}", f"{change.after:.3f}", f"{change.gain:+.3f}", ends)
    console.print(table)
    console.print(f"report: {report}", highlight=False)
