"""What a run or an export of a task starts from: its rows, the prompt, and whether they fit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from policies.vlm.align.align_config import AlignVlmConfig
from portraitkit.errors import ConfigError, DataError
from portraitkit.files.jsonl import write_lines
from portraitkit.parallel import processes
from portraitkit.runs.terminal import counting
from portraitkit.vlm.context import Lengths, check_lengths, context_of
from portraitkit.vlm.rows import Row, files_of, make_rows, open_rows, set_aside_unreadable
from portraitkit.vlm.task import Task, asked_briefly
from portraitkit.vlm.trainer_arguments import batch_of
from reward_models.reward_set import LEARNED_WEIGHT


def prompt_of(config: AlignVlmConfig, task: Task) -> str:
    """What the model is asked, see `--prompt`."""
    brief = config.prompt == "brief" or (config.prompt == "auto" and asked_briefly(config.model))
    return (task.brief or task.prompt) if brief else task.prompt


def open_all_rows(config: AlignVlmConfig, task: Task, console: Console) -> dict[str, list[Row]]:
    """The rows of the three splits, made or read."""
    counts = {"train": config.train_rows, "validation": config.validation_rows, "held_out": config.held_out_rows}
    if config.data != "embedded":
        return open_rows(task, config.data, counts, config.seed)
    with counting(console, "making rows", sum(counts.values())) as advance:
        return {split: make_rows(task, split, count, config.seed, advance=advance) for split, count in counts.items()}


def readable_rows(
    config: AlignVlmConfig, rows: Mapping[str, Sequence[Row]], console: Console, where: Path
) -> tuple[dict[str, list[Row]], list[dict[str, str]]]:
    """The rows whose pictures can be decoded to their end, and the others with their reasons; one line on the screen says so."""
    files = files_of(rows)
    if not files:
        return {split: list(some) for split, some in rows.items()}, []
    count, _ = processes()
    with counting(console, "reading pictures", -(-len(files) // count)) as advance:
        kept, aside = set_aside_unreadable(rows, most=config.max_unusable, advance=advance)
    if aside:
        total = sum(map(len, rows.values()))
        first = f"{aside[0]['row']}: {aside[0]['reason']}"
        said = f"{len(aside)} of {total} rows set aside, see {where}; the first: {first}"
        console.print(said, highlight=False, markup=False, soft_wrap=True)
    return kept, aside


def check_held_out(config: AlignVlmConfig, rows: Sequence[Row]) -> None:
    """DataError for a single held-out row: it could be shown no other row's picture, and has no interval."""
    if len(rows) < 2 and not config.probe:
        raise DataError(
            f"{len(rows)} held-out row: each is also shown another row's picture, so 2 or more are needed; give more rows in test.jsonl of "
            f"--data {config.data}, or raise --held-out-rows {config.held_out_rows}"
        )


def write_aside(path: Path, aside: Sequence[Mapping[str, str]]) -> None:
    """Write the rows that were set aside, a JSON object a line; without any, no file stays."""
    if aside:
        write_lines(path, aside)
    else:
        path.unlink(missing_ok=True)


def check_all_lengths(
    config: AlignVlmConfig, processor: Any, rows: Mapping[str, Sequence[Row]], prompt: str, longest: int | None = None
) -> Lengths:
    """Refuse rows that fit neither into the model's context nor into what the engine takes that generates (`longest` tokens, if given)."""
    context, limit = context_of(config.model), "the model's context"
    if longest is not None and (context is None or longest < context):
        context, limit = longest, "vLLM's longest sequence"
    every = [row for some in rows.values() for row in some]
    targets = "sft" in config.stages
    return check_lengths(processor, every, prompt, max_tokens=config.max_tokens, context=context, limit=limit, targets=targets)


def weights_of(given: Sequence[float], parts: Sequence[str]) -> tuple[float, ...]:
    """A weight for each part of the task's reward and the judge's behind them: those given, or 1 each and .2; ConfigError if too few."""
    if given and len(given) != len(parts):
        raise ConfigError(f"--reward-weights has {len(given)} values for the parts {', '.join(parts)}: give one each")
    return tuple(given) or (*[1.0] * (len(parts) - 1), LEARNED_WEIGHT)


def check_groups(config: AlignVlmConfig) -> None:
    """ConfigError for groups that are split over devices: a judge compares the answers of a whole one."""
    batch = batch_of(config)
    if batch.answers % batch.group:
        raise ConfigError(
            f"--reward {config.reward}: a judge compares all {batch.group} answers of a group, but a device would take {batch.answers}; "
            "leave out the --trl per_device_train_batch_size that splits groups"
        )
