"""One run of `python -m tools.bench.gpu.main`: case after case, each written when it is done; one that does not fit is named."""

import gc
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from portraitkit.config import config_to_dict
from portraitkit.errors import RunFolderError
from portraitkit.files.atomic import write_text
from portraitkit.runs.folder import RunFolder, environment
from portraitkit.runs.terminal import Interruptible, progress_bar
from tools.bench.gpu.case import Case, Row
from tools.bench.gpu.config import GpuBenchConfig
from tools.bench.gpu.device import check_device, device_name, peak_flops
from tools.bench.gpu.table import NOTE, as_json, comparisons, markdown, screen_tables


def run_bench(config: GpuBenchConfig, command: list[str]) -> int:
    """Measure, print, write; returns the exit code, 1 where nothing could be measured.

    Args:
        config: of the run.
        command: as typed.

    Raises:
        ConfigError: no CUDA device, and not asked for tiny models on the CPU.
        RunFolderError: the output folder holds another run, or cannot be written.
    """
    check_device(config.where, tiny=config.tiny)
    name, console, rows = device_name(config.where), Console(), list[Row]()
    peak, device = peak_flops(name), _described(config.where)
    title = f"{datetime.now(UTC):%d %B %Y}, {device['words']}" + (", tiny models: a check of the code" if config.tiny else "")
    words = shlex.join(["python", "-m", "tools.bench.gpu.main", *command[1:]])
    folder = RunFolder.open(Path(config.output_dir), config_to_dict(config), command=command, seed=config.seed, overwrite=config.overwrite)
    with Interruptible() as interrupt, folder as run, progress_bar(Console(stderr=True), elapsed=True) as progress:
        cases = _cases(config, interrupt)
        bar = progress.add_task("measuring", total=sum(len(case.methods) for case in cases))
        for case in cases:
            progress.update(bar, description=f"{case.model}, {case.setting}")
            rows += _attempt(case) if not interrupt.requested else []
            progress.update(bar, completed=len(rows))
            run.write_json("results.json", as_json(rows, {**device, **environment(command, config.seed)}, peak))
            _write(run.path / "results.md", markdown(title, words, rows, peak))
    console.print(title, highlight=False)
    for table in screen_tables(rows, peak):
        console.print(table)
    for line in [*comparisons(rows), NOTE, f"written: {run.path / 'results.json'} and results.md"]:
        console.print(line, highlight=False)
    return interrupt.exit_code or int(all(row.problem for row in rows))


def _cases(config: GpuBenchConfig, interrupt: Interruptible) -> list[Case]:
    cases: list[Case] = []
    if "retoucher" in config.parts:
        from tools.bench.gpu.retoucher import retoucher_cases

        cases += retoucher_cases(config, interrupt)
    if "vlm" in config.parts:
        from tools.bench.gpu.vlm import vlm_cases

        cases += vlm_cases(config, interrupt)
    return cases


def _attempt(case: Case) -> list[Row]:
    """The rows of a case; where memory runs out, those until then and one that says so. Memory is free again afterwards."""
    rows: list[Row] = []
    problem = ""
    try:
        for row in case.measure():
            rows.append(row)
    except torch.OutOfMemoryError as error:
        problem = ". ".join(str(error).split(". ")[:2])
    gc.collect()  # models and their hooks refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if problem:
        rows.append(Row(case.model, case.setting, case.methods[len(rows)], problem=f"{problem}; {case.advise()}"))
    return rows


def _described(device: str) -> dict[str, Any]:
    """The hardware and what drives it."""
    name = device_name(device)
    facts: dict[str, Any] = {"name": name, "torch": torch.__version__, "memory": None, "cuda": None}
    if torch.device(device).type == "cuda":
        facts |= {"memory": torch.cuda.get_device_properties(device).total_memory, "cuda": torch.version.cuda}
    memory = f", {facts['memory'] / 2**30:.0f} GiB" if facts["memory"] else f", {torch.get_num_threads()} threads"
    return {**facts, "words": f"{name}{memory}, torch {facts['torch']}"}


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise RunFolderError(f"{path}: could not be written ({error.strerror}); check the folder and the disk") from error
