"""One run of `benchmark-portraits`: gather, measure, compute how sure, write."""

import shutil
import signal
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.config import BenchmarkConfig
from benchmarks.inputs import Inputs, check_places, check_readable, gather
from benchmarks.metric import Metric
from benchmarks.metrics import load_metrics
from benchmarks.preferences import Pair, check_pairs, read_pairs
from benchmarks.store import FILE, ShardStore, Store, merge_into
from benchmarks.suite import Results, Suite
from benchmarks.weight_files import Digests, MetricWeights, find_weights, locate, search_folders
from portraitkit.config import config_to_dict
from portraitkit.errors import RunFolderError, UserError, WeightsError
from portraitkit.runs.folder import RunFolder, may_resume
from portraitkit.runs.interrupt import Interruptible
from portraitkit.runs.shard_files import ShardFile, clear_shards, has_shards, join_run, merged_rows, wait_for_shards
from portraitkit.runs.shards import Shard, current_shard

NOT_COMPARED = ("weights", "threads", "cache", "max_failed", "overwrite", "output_dir", "shard")
MAKER, MARK, HOLDS = "benchmark-portraits", "weights_dir", "a benchmark"
"""How this command's run folders are told apart, see `portraitkit.runs.folder.may_resume`."""


def run_benchmark(config: BenchmarkConfig, command: list[str]) -> int:
    """Run, and say where the results are.

    Args:
        config: of the run.
        command: as typed, for the record.

    Returns:
        The exit code: 0, or 130 or 143 after a signal.

    Raises:
        UserError: see `portraitkit.errors`.
    """
    shard = None if config.weights else current_shard(config.shard)
    quiet = shard is not None and shard.launched and not shard.merges
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True, quiet=quiet)
    metrics = load_metrics(config.metrics)
    folders = search_folders(config.weights_dir)
    if config.weights:
        Console().print(weights_table(metrics, folders))
        return 0
    check_places(config)
    pairs = read_pairs(config.pairs) if config.pairs else []
    if config.pairs and config.method:
        check_pairs(config.pairs, pairs, None, config.methods)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if shard is not None:
        code = _measure_share(config, command, shard, metrics, folders, pairs, console)
        if code or not shard.merges:
            return code
    made = merged_rows(config.output_dir) if has_shards(config.output_dir) and not config.overwrite else []
    fresh = not config.output_dir.exists()
    with _open_folder(config, command) as folder, Store(config.cache.expanduser()) as store, Interruptible() as interrupt:
        merge_into(store, made)
        digest = Digests(store.digests())
        try:
            inputs = _gather(config, folder.path, pairs, console)
        except UserError:
            if fresh and not (folder.path / "retouched").exists():  # nothing was done that is worth keeping
                shutil.rmtree(folder.path)
            raise
        for note in inputs.notes:
            console.print(f"note: {note}")
        ready, skipped = _with_weights(metrics, folders, digest)
        results = _measure(Suite(ready, store, digest, max_failed=config.max_failed), inputs, interrupt, console)
        results.skipped = {
            metric.name: (skipped | results.skipped)[metric.name] for metric in metrics if metric.name in skipped | results.skipped
        }
        if results.stopped:
            return _stopped(interrupt, console)
        _write(config, folder, results, pairs, console)
        clear_shards(folder.path)
    return 0


def _measure_share(
    config: BenchmarkConfig,
    command: list[str],
    shard: Shard,
    metrics: list[Metric],
    folders: list[Path],
    pairs: list[Pair],
    console: Console,
) -> int:
    """Measure one shard; the process that merges then waits for the others. 0, or 130 or 143 after a signal."""
    resolved, path = _resolved(config), config.output_dir
    check_readable(config)
    free = NOT_COMPARED if (path / "results.json").is_file() else resolved
    join_run(path, resolved, command=command, seed=config.seed, maker=MAKER, mark=MARK, holds=HOLDS, free=free)
    kept = config.cache.expanduser()
    kept = kept if (kept / FILE).is_file() else None  # the merging process makes it
    with ShardFile(path, shard, resolved) as file, Store(kept) as cache, Interruptible() as interrupt:
        if not file.finished:
            with ShardStore(file, cache) as store:
                digest = Digests(store.digests())
                inputs = _gather(config, path, pairs, console, shard)
                ready, _ = _with_weights(metrics, folders, digest)
                if _measure(Suite(ready, store, digest, max_failed=config.max_failed), inputs, interrupt, console, shard).stopped:
                    return _stopped(interrupt, console)
            file.finish()
        if not shard.merges:
            console.print(f"{path}: shard {shard} is measured; after all shards, the same command without --shard merges")
        elif not wait_for_shards(path, lambda: interrupt.requested is not None):
            return _stopped(interrupt, console)
    return 0


def _gather(config: BenchmarkConfig, path: Path, pairs: list[Pair], console: Console, shard: Shard | None = None) -> Inputs:
    """The pictures, and whether the pairs are of them: the measuring that follows may take hours."""
    inputs = gather(config, path, console.print, shard)
    if config.pairs:
        check_pairs(config.pairs, pairs, {item.name for item in inputs.items}, inputs.methods)
    return inputs


def _measure(suite: Suite, inputs: Inputs, interrupt: Interruptible, console: Console, shard: Shard | None = None) -> Results:
    """Run the suite under a progress bar, until a signal comes."""
    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        suite.progress = lambda done, total: bar.update(task, completed=done, total=total)
        suite.stop = lambda: interrupt.requested is not None
        return suite.run(inputs, shard)


def _stopped(interrupt: Interruptible, console: Console) -> int:
    console.print(f"stopped by {signal.Signals(interrupt.requested or 2).name}: what is measured is kept; the same command goes on")
    return interrupt.exit_code


def weights_table(metrics: list[Metric], folders: list[Path]) -> Table:
    """What each metric needs, for `--weights`."""
    table = Table(title=f"Weights; put files into {folders[0]} (--weights-dir or PORTRAITKIT_WEIGHTS)", show_lines=True)
    for column in ("metric", "file", "MiB", "present", "licence", "from"):
        table.add_column(column, overflow="fold")
    digest = Digests()
    for metric in metrics:
        if not metric.weights:
            table.add_row(metric.name, "none", "", "bundled" if metric.bundled else "needs none", metric.licence, metric.revision)
        for wanted in metric.weights:
            path = locate(wanted, folders)
            state = "no (optional)" if wanted.optional else "no"
            if path is not None:
                sha256 = digest(path)
                known = path.name == wanted.name and wanted.sha256
                state = ("yes" if sha256.startswith(wanted.sha256) else "damaged") if known else "yes, hash not on record"
            hashed = f"{wanted.name}\nsha256 {wanted.sha256 or 'not published'}"
            table.add_row(metric.name, hashed, f"{wanted.mib:g}", state, metric.licence, f"{wanted.origin}\n{metric.revision}")
    return table


def _with_weights(metrics: list[Metric], folders: list[Path], digest: Digests) -> tuple[list[tuple[Metric, MetricWeights]], dict[str, str]]:
    ready, skipped = [], {}
    for metric in metrics:
        try:
            ready.append((metric, find_weights(metric, folders, digest)))
        except WeightsError as error:
            skipped[metric.name] = str(error)
    return ready, skipped


def _resolved(config: BenchmarkConfig) -> dict[str, Any]:
    """What identifies a run."""
    return {key: value for key, value in config_to_dict(config).items() if key not in NOT_COMPARED}


def _open_folder(config: BenchmarkConfig, command: list[str]) -> RunFolder:
    """The run's folder; the same run again goes on in it, and so does any run where none has written results yet.

    Raises:
        RunFolderError: it holds other files, another run, or the run of another command.
    """
    path, resolved = config.output_dir, _resolved(config)
    ours = may_resume(path, resolved, maker=MAKER, mark=MARK, holds=HOLDS, free=resolved, overwrite=config.overwrite)
    resume = "latest" if ours else None
    try:
        return RunFolder.open(
            path,
            resolved,
            command=command,
            seed=config.seed,
            overwrite=config.overwrite,
            resume=resume,
            allow_changed=not (path / "results.json").is_file(),
        )
    except RunFolderError as error:
        raise RunFolderError(str(error).replace("use --allow-changed to go on", "use --overwrite or another --output-dir")) from error


def _write(config: BenchmarkConfig, folder: RunFolder, results: Results, pairs: list[Pair], console: Console) -> None:
    from benchmarks.report import write_report
    from benchmarks.tables import Analysis, write_tables

    analysis = Analysis.of(results, config.seed, pairs)
    write_tables(folder.path, analysis)
    report = write_report(folder.path, analysis)
    count, skipped = len(results.inputs.items), len(results.skipped)
    console.print(f"{len(results.metrics)} metrics on {count} pictures, {results.computed} values computed, {skipped} skipped")
    for name, reason in results.skipped.items():
        console.print(f"  skipped {name}: {reason}")
    for line in analysis.verdicts():
        console.print(f"  {line}")
    if results.failed:
        console.print(f"{len(results.failed)} failures are in {folder.path / 'failed.jsonl'}")
    print(report)
