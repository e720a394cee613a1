"""One run of `train-reward-model`: evaluate the base, train the stages, evaluate after each, train a blind copy, check, report."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from portraitkit.config import config_to_dict
from portraitkit.errors import CheckpointError, ConfigError, RunFolderError
from portraitkit.files.jsonl import read_json
from portraitkit.hub import open_repo, push_folder
from portraitkit.pictures.images import image_size
from portraitkit.runs.checkpoint import check_processes
from portraitkit.runs.folder import RunFolder, SilentRunFolder, check_run_folder, differences, open_run
from portraitkit.runs.terminal import Interruptible, counting
from portraitkit.vlm.context import Lengths, check_lengths, context_of
from portraitkit.vlm.model import load_processor
from portraitkit.vlm.rows import Row
from portraitkit.vlm.stages import Interrupted, RunContext, newest_checkpoint, start_run
from portraitkit.vlm.trainers import check_vllm
from reward_models.evaluation.battery import ask_about_rewards, check_judge, summarise
from reward_models.evaluation.figures import right
from reward_models.evaluation.report import print_result, write_judge_card, write_report
from reward_models.judge.coherence import load_coherence
from reward_models.judge.judge import Comparison, calibrate, load_judge
from reward_models.judge.pairs import JudgedPair, View, check_disjoint, open_pairs
from reward_models.judge.settings import view_of, write_settings
from reward_models.training.config import RewardModelConfig, needed_by
from reward_models.training.stages import Training, forget, is_done, newest, run_stage, train_blind

SAME = ("model", "data", "seed", "shown", "form", "train_pairs", "sft_pairs", "validation_pairs", "held_out_pairs", "max_pixels")
"""What must not change between the stages of one run folder: what is judged, and how it is shown."""


def run_training(config: RewardModelConfig, command: list[str]) -> int:
    """Train one judge and write the run folder; returns the exit code (0, or 130 / 143 when interrupted and saved)."""
    started = time.monotonic()
    processes, console, grpo = start_run(config, config.folder)
    first = processes.is_main_process
    if first:
        check_folder(config)
    for differs in check_stages(config, processes.num_processes):
        console.print(differs, highlight=False)
    longest = check_vllm(grpo, config.device) if "grpo" in config.stages else None
    view = view_of(config.model, config.shown, config.form)
    processor = load_processor(config.source, max_pixels=config.max_pixels)
    coherence = load_coherence(config.coherence, config.device)
    total = sum(config.counts.values()) if config.data == "embedded" else None
    with counting(console, "making pairs" if total else "reading pairs", total) as advance:
        pairs = open_pairs(config.data, config.counts, config.seed, advance=advance)
    console.print(str(check_pair_lengths(config, processor, view, pairs, longest)), highlight=False)
    folder = Path(config.folder)
    repo = open_repo(config.push_to_hub) if config.push_to_hub is not None and first else None
    run = open_folder(config, command) if first else None
    processes.wait_for_everyone()
    with run or SilentRunFolder(folder) as run, Interruptible() as interrupt:

        def validate(model: Any) -> dict[str, float]:
            forward, backward = right(pairs["validation"], training.ask(model, pairs["validation"]), "overall")
            return {"acc_average": float(((forward + backward) / 2).nanmean()), "acc_consistent": float((forward * backward).nanmean())}

        run.write_json("identities.json", check_disjoint(pairs))
        run.write_json("view.json", vars(view))
        context = RunContext(config, run, processor, view.prompt, interrupt, console, processes, validate)
        shared = {"context": context, "pairs": pairs, "coherence": coherence}
        training = Training(config, processor, view, console, interrupt, write=first, **shared)
        try:
            _all_stages(training)
        except Interrupted:
            _add_seconds(run, started)
            console.print(f"stopped and saved; go on with --resume-from-checkpoint latest --output-dir {folder}", highlight=False)
            return interrupt.exit_code
        if first:
            summary = summarise(folder, config, view, pairs, _add_seconds(run, started))
            run.write_json("summary.json", summary)
            write_report(folder, pairs["held_out"])
            write_judge_card(folder)
            print_result(console, summary, folder)
        processes.wait_for_everyone()
    if repo is not None:
        console.print(f"pushed: {push_folder(folder / 'model', repo)}", highlight=False)
    return 0


def _add_seconds(run: RunFolder, started: float) -> float:
    """Seconds spent on the run, those before an interrupt included."""
    path = run.path / "seconds.json"
    spent = read_json(path)["seconds"] if path.is_file() else 0.0
    run.write_json("seconds.json", {"seconds": spent + time.monotonic() - started})
    return spent + time.monotonic() - started


def check_folder(config: RewardModelConfig) -> bool:
    """Refuse a run folder that cannot be used, before anything is read or made; returns whether its later stages are to be done again."""
    folder, resume = Path(config.folder), config.resume_from_checkpoint
    if resume not in (None, "latest"):
        raise CheckpointError(f"--resume-from-checkpoint {resume}: a run of several stages goes on from the newest; give latest")
    later = resume is None and not config.overwrite and config.stages[0] != "sft"
    again = later and newest(folder, "", config.stages[0])[0] != "base"
    check_run_folder(
        folder, overwrite=config.overwrite, resume="latest" if again else resume, report_to=list(config.report_to), needed=needed_by(config)
    )
    return again


def check_stages(config: RewardModelConfig, count: int) -> list[str]:
    """Refuse to go on from a stage's checkpoint with another number of processes; see `portraitkit.runs.checkpoint.check_processes`.

    Returns:
        What differs where that is allowed, one line for each checkpoint.
    """
    if config.resume_from_checkpoint is None:
        return []
    checkpoints = [newest_checkpoint(Path(config.folder) / stage) for stage in (*config.stages, "blind")]
    said = [check_processes(checkpoint, count, allow_changed=config.allow_changed) for checkpoint in checkpoints]
    return [line for line in said if line is not None]


def open_folder(config: RewardModelConfig, command: list[str]) -> RunFolder:
    """A new run; the run to resume; or one whose later stages are to be done again from its earlier ones."""
    folder, again = Path(config.folder), check_folder(config)
    if not again:
        return open_run(config, command)
    stored = read_json(folder / "config.json")
    if changed := differences(stored, config_to_dict(config), SAME):
        raise RunFolderError(f"{folder}: its stages were trained with other options ({'; '.join(changed)}); use another --output-dir")
    for stage in config.stages:
        forget(folder, stage)
    return open_run(config, command, resume="latest", allow_changed=True)


def _all_stages(training: Training) -> None:
    config, folder = training.config, training.folder
    training.answer(config.source, training.pairs, folder / "base")
    for stage in config.stages:
        if is_done(folder, stage):
            training.say(f"{stage}: is finished, see {folder / stage}")
        else:
            run_stage(training, stage)
        training.answer(str(folder / stage / "model"), training.pairs, folder / stage)
    if config.blind:
        train_blind(training)
    last, model = newest(folder, config.source)
    if training.write and last != "base":
        calibrate_last(config, training.pairs["validation"], folder / last / "model", training.say)
    check_judge(training, training.load(model), training.pairs["held_out"], folder / "checks")
    ask_about_rewards(training, model, training.pairs["held_out"], folder / "checks")
    training.wait()
    if training.write and last != "base":
        link = folder / "model"
        link.unlink(missing_ok=True)
        link.symlink_to(Path(last) / "model", target_is_directory=True)


def calibrate_last(config: RewardModelConfig, pairs: Sequence[JudgedPair], folder: Path, say: Callable[[str], None]) -> None:
    """Fit the temperature of the judge in `folder` on validation pairs and write it into its `judge.json`."""
    known = [(pair, pair.overall) for pair in pairs if pair.overall]
    judge = load_judge(str(folder), device=config.device, dtype=config.dtype)
    try:
        settings = calibrate(judge, [Comparison(*pair.pixels()) for pair, _ in known], [truth for _, truth in known])
    except ConfigError as error:
        say(f"not calibrated: {error}")
        return
    write_settings(folder, settings)
    say(f"calibrated on {len(known)} validation pairs: log-odds are divided by {settings.temperature:.2f}")


def check_pair_lengths(
    config: RewardModelConfig, processor: Any, view: View, pairs: Mapping[str, Sequence[JudgedPair]], longest: int | None
) -> Lengths:
    """Refuse pairs that leave no room for an answer; both orders are equally long, so that one of them is counted.

    Pictures that are shown as they were taken are all counted, from their files' heads. Views that are drawn are counted once for each size
    of the photo. `longest` are the tokens that the engine takes which generates, if there is one."""
    context, limit = context_of(config.source), "the model's context"
    if longest is not None and (context is None or longest < context):
        context, limit = longest, "vLLM's longest sequence"
    rows: dict[object, Row] = {}
    for pair in (pair for some in pairs.values() for pair in some):
        whole = view.shown == "as-taken" and isinstance(pair.photo, Path)
        sizes = [image_size(one) if isinstance(one, Path) else one.shape[:2] for one in (pair.photo, pair.a, pair.b)]
        key = pair.id if whole else tuple(sizes)
        if key not in rows:
            rows[key] = view.rows(pair)[0]
    settings: dict[str, Any] = {"max_tokens": config.max_tokens, "context": context, "limit": limit, "targets": "sft" in config.stages}
    return check_lengths(processor, list(rows.values()), view.prompt, **settings)
