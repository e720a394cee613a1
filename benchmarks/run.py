"""One run of `benchmark-portraits`: gather, measure, compute how sure, write."""

import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.config import BenchmarkConfig
from benchmarks.inputs import Inputs, check_places, check_readable, gather
from benchmarks.metric import Metric
from benchmarks.metrics import load_metrics
from benchmarks.stats import Preference, check_pairs, read_pairs
from benchmarks.store import FILE, ShardStore, Store, merge_into
from benchmarks.suite import Results, Suite
from benchmarks.weight_files import Digests, search_folders, weights_table, with_weights
from portraitkit.config import config_to_dict, may_change
from portraitkit.runs.folder import Maker, start_or_go_on
from portraitkit.runs.shards import Shard, ShardFile, clear_shards, current_shard, join_run, merged_rows, shard_count, wait_for_shards
from portraitkit.runs.terminal import Interruptible, progress_bar
from portraitkit.vlm.model import check_device

NOT_COMPARED = may_change(BenchmarkConfig)
MAKER = Maker("benchmark-portraits", "weights_dir", "a benchmark", NOT_COMPARED)


def run_benchmark(config: BenchmarkConfig, command: list[str]) -> int:
    """Run, and say where the results are; returns the exit code: 0, or 130 or 143 after a signal. UserError: see `portraitkit.errors`."""
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
    check_device(config.device)
    if config.device == "cuda" and shard is not None:
        config = replace(config, device=f"cuda:{shard.local % torch.cuda.device_count()}")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    run = _Run(config, command, metrics, folders, pairs, console)
    if shard is not None:
        code = run.measure_share(shard)
        if code or not shard.merges:
            return code
    return run.measure_all()


@dataclass(frozen=True)
class _Run:
    """What a run needs beside its options; `folders` are searched for weights."""

    config: BenchmarkConfig
    command: list[str]
    metrics: list[Metric]
    folders: list[Path]
    pairs: list[Preference]
    console: Console

    def measure_all(self) -> int:
        """Measure what no shard and no earlier run has, and write the results. 0, or 130 or 143 after a signal."""
        config = self.config
        shards = merged_rows(config.output_dir) if shard_count(config.output_dir) and not config.overwrite else []
        resolved, maker = _resolved(config), _maker(config)
        opened = start_or_go_on(config.output_dir, resolved, maker, command=self.command, seed=config.seed, overwrite=config.overwrite)
        with opened as folder, Store(config.cache.expanduser()) as store, Interruptible() as interrupt:
            merge_into(store, shards)
            inputs = self.gather(folder.path)
            for note in inputs.notes:
                self.console.print(f"note: {note}")
            results = self.measure(inputs, store, interrupt)
            if results.stopped:
                return self.stopped(interrupt)
            self.write(folder.path, results)
            clear_shards(folder.path)
        return 0

    def measure_share(self, shard: Shard) -> int:
        """Measure one shard; the process that merges then waits for the others. 0, or 130 or 143 after a signal."""
        config, resolved, path = self.config, _resolved(self.config), self.config.output_dir
        check_readable(config)
        join_run(path, resolved, _maker(config), command=self.command, seed=config.seed)
        kept = config.cache.expanduser()
        kept = kept if (kept / FILE).is_file() else None  # the merging process makes it
        with ShardFile(path, shard, resolved) as file, Store(kept) as cache, Interruptible() as interrupt:
            if not file.finished:
                with ShardStore(file, cache) as store:
                    if self.measure(self.gather(path, shard), store, interrupt, shard).stopped:
                        return self.stopped(interrupt)
                file.finish()
            if not shard.merges:
                self.console.print(f"{path}: shard {shard} is measured; after all shards, the same command without --shard merges")
            elif not wait_for_shards(path, lambda: interrupt.requested is not None):
                return self.stopped(interrupt)
        return 0

    def gather(self, path: Path, shard: Shard | None = None) -> Inputs:
        """The pictures, and whether the pairs are of them: the measuring that follows may take hours."""
        inputs = gather(self.config, path, self.console.print, shard)
        if self.config.pairs:
            check_pairs(self.config.pairs, self.pairs, {item.name for item in inputs.items}, inputs.methods)
        return inputs

    def measure(self, inputs: Inputs, store: Store, interrupt: Interruptible, shard: Shard | None = None) -> Results:
        """Run the suite under a progress bar, until a signal comes."""
        digest = Digests(store.digests())
        ready, lacking = with_weights(self.metrics, self.folders, digest)
        with progress_bar(self.console, elapsed=True) as bar:
            task = bar.add_task("measuring", total=None)
            suite = Suite(
                ready,
                store,
                digest,
                max_failed=self.config.max_failed,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
                stop=lambda: interrupt.requested is not None,
                device=self.config.device,
                dtype=self.config.dtype,
            )
            results = suite.run(inputs, shard)
        skipped = lacking | results.skipped
        results.skipped = {metric.name: skipped[metric.name] for metric in self.metrics if metric.name in skipped}
        return results

    def stopped(self, interrupt: Interruptible) -> int:
        """Say so; the exit code."""
        name = signal.Signals(interrupt.requested or 2).name
        self.console.print(f"stopped by {name}: what is measured is kept; the same command goes on")
        return interrupt.exit_code

    def write(self, folder: Path, results: Results) -> None:
        """Tables and report, and what they say in a few lines."""
        from benchmarks.report import write_report
        from benchmarks.tables import Analysis, means_table, write_tables

        analysis = Analysis.of(results, self.config.seed, self.pairs)
        write_tables(folder, analysis)
        report = write_report(folder, analysis)
        count, skipped = len(results.inputs.items), len(results.skipped)
        self.console.print(f"{len(results.metrics)} metrics on {count} pictures, {results.computed} values computed, {skipped} skipped")
        if results.skipped:
            self.console.print(f"  skipped, the report says why: {', '.join(results.skipped)}")
        self.console.print(means_table(analysis), soft_wrap=False)
        for line in analysis.verdicts():
            self.console.print(f"  {line}")
        if results.failed:
            self.console.print(f"{len(results.failed)} failures are in {folder / 'failed.jsonl'}")
        print(report)


def _resolved(config: BenchmarkConfig) -> dict[str, Any]:
    """What identifies a run."""
    return {key: value for key, value in config_to_dict(config).items() if key not in NOT_COMPARED}


def _maker(config: BenchmarkConfig) -> Maker:
    """Whose folder it must be: of this run; where none has written results yet, of any."""
    return MAKER if (config.output_dir / "results.json").is_file() else replace(MAKER, free=_resolved(config))
