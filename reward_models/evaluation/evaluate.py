"""`train-reward-model --evaluate`: how good and how biased a judge is, without training one."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from portraitkit.config import config_to_dict, may_change
from portraitkit.errors import RunFolderError
from portraitkit.runs.folder import Maker, check_run_folder, open_run
from portraitkit.runs.shards import Shard, ShardFile, check_shard, clear_shards, current_shard, join_run, merged_rows, wait_for_shards
from portraitkit.runs.terminal import Interruptible, counting
from portraitkit.vlm.model import be_quiet, check_device, load_processor
from portraitkit.vlm.stages import Interrupted
from reward_models.evaluation.battery import Asking, ask_about_rewards, check_judge, summarise, write_answers
from reward_models.evaluation.public_pairs import benchmark_files, read_benchmark
from reward_models.evaluation.report import print_result, write_report
from reward_models.judge.pairs import JudgedPair, View, open_pairs
from reward_models.judge.settings import view_of
from reward_models.training.config import RewardModelConfig, needed_by

MAY_DIFFER = may_change(RewardModelConfig)


def run_evaluation(config: RewardModelConfig, command: list[str]) -> int:
    """Evaluate `--model` and write summary and report; returns the exit code.

    The blind baseline is left out: it needs a training. Without validation pairs, as in public benchmarks, tau's tie threshold is 0.
    """
    started = time.monotonic()
    be_quiet()
    check_shard(None, config.overwrite)
    shard = current_shard(None)
    console = Console(stderr=True, quiet=shard is not None and not shard.merges)
    check_device(config.device)
    folder = Path(config.folder)
    if shard is None:
        check_run_folder(folder, overwrite=config.overwrite, report_to=list(config.report_to), needed=needed_by(config))
    view = view_of(config.model, config.shown, config.form)
    processor = load_processor(config.source, max_pixels=config.max_pixels)
    pairs: dict[str, list[JudgedPair]] = {}
    if config.benchmark != "none":
        benchmark_files(config.benchmark, Path(config.data))  # refused before anything is written
    else:
        counts = {split: config.counts[split] for split in ("validation", "held_out")}  # validation pairs are for the tie thresholds
        with counting(console, "reading pairs", sum(counts.values()) if config.data == "embedded" else None) as advance:
            pairs = open_pairs(config.data, counts, config.seed, advance=advance)
    if shard is not None:
        code = _ask_share(config, shard, processor, view, pairs, command, console)
        if code or not shard.merges:
            return code
    resume = "latest" if shard is not None else None
    with open_run(config, command, resume=resume, allow_changed=False, report_to=[]) as run, Interruptible() as interrupt:
        run.write_json("view.json", vars(view))
        pairs = pairs or _public(config, folder, console)
        asking = Asking(config, processor, view, console, interrupt)
        try:
            if shard is not None:
                write_answers(folder, merged_rows(folder))
            else:
                _ask_all(asking, pairs, folder)
            ask_about_rewards(asking, config.model, pairs["held_out"], folder / "checks")
        except Interrupted:
            console.print("stopped; evaluate again with --overwrite", highlight=False)
            return interrupt.exit_code
        summary = summarise(folder, config, view, pairs, time.monotonic() - started)
        run.write_json("summary.json", summary)
        write_report(folder, pairs["held_out"])
        clear_shards(folder)
    print_result(console, summary, folder)
    return 0


def _ask_all(asking: Asking, pairs: Mapping[str, Sequence[JudgedPair]], folder: Path) -> None:
    """Ask the judge about everything; the answers are in files then."""
    asking.answer(asking.config.source, pairs, folder / "base")
    check_judge(asking, asking.load(asking.config.source), pairs["held_out"], folder / "checks")


def _ask_share(
    config: RewardModelConfig,
    shard: Shard,
    processor: Any,
    view: View,
    pairs: Mapping[str, Sequence[JudgedPair]],
    command: list[str],
    console: Console,
) -> int:
    """Ask about one process's share; the first process then waits for the others. 0, or 130 or 143 after a signal."""
    folder, stored = Path(config.folder), config_to_dict(config)
    if (folder / "summary.json").is_file():
        raise RunFolderError(f"{folder}: holds a finished run; give another --output-dir")
    maker = Maker("train-reward-model --evaluate", "hack_cases", "an evaluation", MAY_DIFFER)
    join_run(folder, stored, maker, command=command, seed=config.seed)
    if config.device == "cuda":
        config = replace(config, device=f"cuda:{shard.local % torch.cuda.device_count()}")
    options = {name: value for name, value in stored.items() if name not in MAY_DIFFER}
    with ShardFile(folder, shard, options) as own, Interruptible() as interrupt:
        if not own.finished:
            asking = Asking(config, processor, view, console, interrupt, own=own)
            try:
                _ask_all(asking, pairs or _public(config, folder, console), folder)
            except Interrupted:
                console.print("stopped; the same command goes on", highlight=False)
                return interrupt.exit_code
            own.finish()
        if shard.merges and not wait_for_shards(folder, lambda: interrupt.requested is not None):
            return interrupt.exit_code
    return 0


def _public(config: RewardModelConfig, folder: Path, console: Console) -> dict[str, list[JudgedPair]]:
    """The pairs of a public benchmark; pictures that stand in its tables become files of the run."""
    pairs, left_out = read_benchmark(config.benchmark, Path(config.data), folder / "pictures", limit=config.benchmark_rows)
    console.print(f"{config.benchmark}: {len(pairs)} pairs, {left_out} rows of another kind left out", highlight=False)
    return {"held_out": pairs}
