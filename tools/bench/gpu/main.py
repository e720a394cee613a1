"""`make gpu-bench`: what real sizes cost on a GPU, with random weights. Imports nothing heavy: `--help` must answer at once.

FLUX.1 Kontext (12 billion parameters) with its LoRA, groups by DPG and by all-step Flow-GRPO, and Qwen2.5-VL-7B with a LoRA, updates of
GRPO by TRL: seconds, network evaluations per second, model FLOPs utilisation, and peak memory beside what `--dry-run` plans.
"""

import sys

from portraitkit.cli import run_command


def gpu_bench() -> None:
    """Entry of `python -m tools.bench.gpu.main`."""
    run_command(_bench)


def _bench(argv: list[str]) -> int:
    from portraitkit.config import load_config
    from tools.bench.gpu.config import GpuBenchConfig

    config = load_config(GpuBenchConfig, argv, prog="python -m tools.bench.gpu.main")
    from tools.bench.gpu.run import run_bench

    return run_bench(config, [sys.argv[0], *argv])


if __name__ == "__main__":
    gpu_bench()
