"""`make bench`: what a training step costs on this CPU, idle and beside two busy processes, with and without bfloat16 instructions.

    python -m tools.bench.processors              seconds of a step of the demo, of align-vlm and of train-reward-model
    python -m tools.bench.processors --answers    how often the embedded models answer otherwise under AVX2's kernels

Steps are those of the real commands, shortened; the first of each run is left out. Without bfloat16 means AVX2's kernels (oneDNN, ATen and
MKL are told so), which stand for a processor that has nothing newer: its float32 is slower still.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
KERNELS: dict[str, dict[str, str]] = {"this processor's": {}, "AVX2": AVX2}
SHORT = "--overwrite --max-train-steps 6 --validation-steps 6"
COMMANDS = {
    "align-retoucher --config demo": f"{SHORT} --validation-photos 2 --held-out-photos 2",
    "align-vlm --task area": f"{SHORT} --train-rows 96 --validation-rows 8 --held-out-rows 8 --samples 2",
    "train-reward-model --stages grpo": f"{SHORT} --train-pairs 96 --validation-pairs 8 --held-out-pairs 8 --hack-cases 1 "
    "--stability-pairs 2 --no-blind",
}
TASKS = ("area", "makeup-lips", "makeup", "emotion", "preference")
ANSWERS = "from tools.bench.processors import print_answers; print_answers({rows})"


def seconds_of_a_step(command: str, environment: dict[str, str], busy: int) -> float:
    """Median seconds of a training step of a shortened command, beside `busy` processes that compute without end."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            name, *options = command.split()
            argv = [str(Path(sys.executable).parent / name), *options, *COMMANDS[command].split(), "--output-dir", folder]
            subprocess.run(argv, check=True, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            logs = sorted(Path(folder).rglob("metrics.jsonl"))
            rows = [json.loads(line) for log in logs for line in log.read_text(encoding="utf-8").splitlines()]
    finally:
        for other in others:
            other.kill()
            other.wait()
    if "retoucher" in command:
        total = [row["seconds"] for row in rows if row.get("kind") == "train"]
        return median(later - before for before, later in zip(total, total[1:], strict=False))
    return median([row["step_time"] for row in rows if "step_time" in row][1:])


def print_answers(count: int) -> None:
    """Greedy answers of the embedded models to held-out rows of every task, as JSON lines."""
    from policies.vlm.tasks import load_task
    from portraitkit.vlm.generate import complete
    from portraitkit.vlm.model import load_model, load_processor
    from portraitkit.vlm.rows import make_rows

    model, processor = load_model("embedded"), load_processor("embedded")
    for name in TASKS:
        task = load_task(name)
        rows = make_rows(task, "held_out", count, 0)
        for (answer,) in complete(model, processor, task.brief or task.prompt, rows, max_tokens=96):
            print(json.dumps([name, answer.text]))


def compare_answers(count: int) -> Table:
    """How many greedy answers differ between the kernels, by task."""
    answers = []
    for environment in KERNELS.values():
        argv = [sys.executable, "-c", ANSWERS.format(rows=count)]
        done = subprocess.run(argv, check=True, capture_output=True, text=True, env={**os.environ, **environment})
        answers.append([json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")])
    table = Table(title=f"Greedy answers to {count} held-out rows: this processor's kernels against AVX2's", title_justify="left")
    for column in ("task", "answers", "that differ"):
        table.add_column(column)
    for name in TASKS:
        pairs = [(one, other) for (task, one), (_, other) in zip(*answers, strict=True) if task == name]
        table.add_row(name, str(len(pairs)), str(sum(one != other for one, other in pairs)))
    return table


def compare_steps(busy: int) -> Table:
    """Seconds of a step of each command."""
    table = Table(title=f"Seconds of a training step, {os.cpu_count()} cores", title_justify="left")
    for column in ("command", "kernels", "idle", f"beside {busy} busy processes", "ratio"):
        table.add_column(column)
    for command in COMMANDS:
        for kernels, environment in KERNELS.items():
            idle, beside = (seconds_of_a_step(command, environment, number) for number in (0, busy))
            table.add_row(command, kernels, f"{idle:.2f}", f"{beside:.2f}", f"{beside / idle:.1f}")
    return table


def main() -> None:
    """Print one of the two tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--answers", action="store_true", help="compare the embedded models' greedy answers instead of seconds")
    parser.add_argument("--rows", type=int, default=100, help="held-out rows of each task")
    parser.add_argument("--busy", type=int, default=2, help="busy processes beside a step")
    options = parser.parse_args()
    Console(width=140).print(compare_answers(options.rows) if options.answers else compare_steps(options.busy))


if __name__ == "__main__":
    main()
