"""`train-reward-model --evaluate`: how good and how biased a judge is, without training one."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from portraitkit.config import config_to_dict
from portraitkit.interrupt import Interruptible
from portraitkit.progress import progress_bar
from portraitkit.runs import RunFolder, check_run_folder
from portraitkit.vlm.load import be_quiet, check_device, load_model, load_processor
from reward_models.judge_checks import Asking, check_judge, checks_summary, held_out_summary
from reward_models.judge_report import print_result, write_report
from reward_models.judge_settings import view_of
from reward_models.judged_pairs import JudgedPair, open_pairs
from reward_models.public_pairs import benchmark_files, read_benchmark
from reward_models.stage_fit import Interrupted
from reward_models.train_config import RewardModelConfig, needed_by


def run_evaluation(config: RewardModelConfig, command: list[str]) -> int:
    """Evaluate `--model` and write summary and report; returns the exit code.

    The blind baseline is left out: it needs a training. Without validation pairs, as in public benchmarks, tau's tie threshold is 0.
    """
    started = time.monotonic()
    be_quiet()
    console = Console(stderr=True)
    check_device(config.device)
    folder = Path(config.folder)
    check_run_folder(folder, overwrite=config.overwrite, report_to=list(config.report_to), needed=needed_by(config))
    view = view_of(config.model, config.shown, config.form)
    processor = load_processor(config.source, max_pixels=config.max_pixels)
    public = config.benchmark != "none"
    if public:
        benchmark_files(config.benchmark, Path(config.data))  # refused before anything is written
    pairs = {} if public else _embedded_or_stored(config, console)
    stored, seed = config_to_dict(config), config.seed
    with RunFolder.open(folder, stored, command=command, seed=seed, overwrite=config.overwrite) as run, Interruptible() as interrupt:

        def stop() -> None:
            if interrupt.requested:
                raise Interrupted

        asking = Asking(config, processor, view, console, stop)
        run.write_json("view.json", vars(view))
        if public:
            found, left_out = read_benchmark(config.benchmark, Path(config.data), folder / "pictures", limit=config.held_out_pairs)
            console.print(f"{config.benchmark}: {len(found)} pairs, {left_out} rows of another kind left out", highlight=False)
            pairs = {"held_out": found}
        model = load_model(config.source, dtype=config.dtype, device=config.device)
        try:
            judged = {
                split: asking.judge(model, some, split.replace("_", "-"), folder / "base" / f"{split}.jsonl")
                for split, some in pairs.items()
            }
            check_judge(asking, model, pairs["held_out"], folder / "checks", judged["held_out"])
        except Interrupted:
            console.print("stopped; evaluate again with --overwrite", highlight=False)
            return interrupt.exit_code
        checks = checks_summary(folder / "checks", view, pairs["held_out"], judged["held_out"])
        summary: dict[str, Any] = {
            **held_out_summary(pairs, {"base": judged}, checks, None),
            **{name: checks[name] for name in ("hacks", "stability", "groups", "calibration")},
            "final": "base",
            "benchmark": config.benchmark,
            "seconds": time.monotonic() - started,
            "pairs": {split: len(some) for split, some in pairs.items()},
            "seed": config.seed,
            "synthetic": all(pair.synthetic for pair in pairs["held_out"]),
        }
        run.write_json("summary.json", summary)
        write_report(folder, pairs["held_out"])
    print_result(console, summary, folder)
    return 0


def _embedded_or_stored(config: RewardModelConfig, console: Console) -> dict[str, list[JudgedPair]]:
    """Held-out pairs, and validation pairs for the tie thresholds."""
    counts = {split: config.counts[split] for split in ("validation", "held_out")}
    with progress_bar(console, elapsed=True) as progress:
        bar = progress.add_task("reading pairs", total=sum(counts.values()) if config.data == "embedded" else None)
        return open_pairs(config.data, counts, config.seed, advance=lambda: progress.advance(bar))
