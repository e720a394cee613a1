"""Entry point of `benchmark-portraits`. Imports nothing heavy: `--help` must answer at once."""

import sys

from portraitkit.cli import command


@command
def benchmark_portraits(argv: list[str]) -> int:
    """Is a retoucher better, by how much, for whom, and how sure."""
    from benchmarks.config import BenchmarkConfig
    from portraitkit.config import load_config

    config = load_config(
        BenchmarkConfig, argv, prog="benchmark-portraits", example="--method ours=retoucher:tiny+runs/demo --source data/photos"
    )
    from benchmarks.run import run_benchmark

    return run_benchmark(config, [sys.argv[0], *argv])


if __name__ == "__main__":  # torchrun -m benchmarks.main ...
    benchmark_portraits()
