"""The command `score-completions`: what completions earn, without training anything."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from portraitkit.errors import DataError
from portraitkit.vlm.task import Task


def score_main(argv: list[str]) -> int:
    """Parse the arguments, read every row, then print one line a row: nothing is printed if a row is bad.

    Args:
        argv: what follows the command's name.

    Raises:
        ConfigError: an unknown task or option.
        DataError: the file cannot be read, or a row breaks the schema; its number is named.
    """
    from policies.vlm.score_config import ScoreConfig
    from policies.vlm.tasks import load_task
    from portraitkit.config import load_config

    config = load_config(ScoreConfig, argv, prog="score-completions")
    task = load_task(config.task)
    for completion, truth in list(read_rows(config.rows, task)):
        score = task.score(completion, truth, config.mode)
        print(json.dumps({"reward": round(score.reward, 10), "parts": score.parts, "parsed": score.parsed}))
    return 0


def read_rows(path: Path, task: Task) -> Iterator[tuple[str, Any]]:
    """Completions and truths of a JSONL file; blank lines are skipped.

    Raises:
        DataError: see `score_main`.
    """
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a UTF-8 file of JSON lines") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({error}); one object a line") from error
        if not isinstance(row, dict) or not isinstance(row.get("completion"), str):
            raise DataError(f"{where}: needs a string completion")
        try:
            yield row["completion"], task.read_truth(row)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
