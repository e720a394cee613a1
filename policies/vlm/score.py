"""The command `score-completions`: what completions earn, without training anything; and a model's opinion of written emotion analyses.

The opinion, from 1 to 10, comes from any OpenAI-compatible endpoint. An answer without one whole number from 1 to 10 in the form asked for,
and a request that failed, give no score: they are counted and named, and the mean is over the scored rows only. The figure depends on the
judge: its name stands beside it.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from policies.vlm.config import ScoreConfig
from portraitkit.endpoint import Endpoint, Question
from portraitkit.errors import ConfigError, DataError
from portraitkit.files.atomic import check_writable, write_text
from portraitkit.files.jsonl import finite, read_objects
from portraitkit.vlm.task import Task

Columns = tuple[str, Any, dict[str, Any], int]  # Of one row: completion, truth, all it says, and its line in the file


def score_main(argv: list[str]) -> int:
    """Parse the arguments, read every row, then print one line a row: nothing is printed if a row is bad.
    ConfigError: an unknown task or option.
    DataError: the file cannot be read or holds no rows, or a row breaks the schema; its number is named."""
    from policies.vlm.tasks import load_task
    from portraitkit.config import load_config

    config = load_config(ScoreConfig, argv, prog="score-completions", example="answers.jsonl --task area")
    task = load_task(config.task)
    rows = list(_read_columns(config.rows, task))
    if not rows:
        raise DataError(f"{config.rows}: holds no rows; one JSON object a line")
    summarise = _prepare_metrics(config, task, rows) if config.metrics else None
    rewards = []
    for completion, truth, _, _ in rows:
        score = task.score(completion, truth, config.mode)
        rewards.append(score.reward)
        print(json.dumps({"reward": round(score.reward, 10), "parts": score.parts, "parsed": score.parsed}))
    if summarise is not None and config.metrics is not None:
        summary = {"task": task.name, "rows": len(rows), "reward": sum(rewards) / len(rewards), **summarise()}
        with _writable(config.metrics):
            config.metrics.parent.mkdir(parents=True, exist_ok=True)
            write_text(config.metrics, json.dumps(finite(summary), indent=2) + "\n")
        single = {}  # figures of a summary, one level deep, for the screen
        for name, value in summary.items():
            single |= {f"{name}.{key}": figure for key, figure in value.items()} if isinstance(value, dict) else {name: value}
        said = [f"{name} {figure:.4g}" for name, figure in single.items() if type(figure) in (int, float)]
        print(f"{config.metrics}: {', '.join(said)}", file=sys.stderr)
    return 0


def _prepare_metrics(config: ScoreConfig, task: Task, rows: list[Columns]) -> Callable[[], dict[str, Any]]:
    """What computes the metrics once the rewards are printed; everything that can be refused is refused here."""
    if (path := config.metrics) is not None:
        with _writable(path):
            if path.is_dir():
                raise ConfigError(f"--metrics {path}: is a folder; give the path of a JSON file")
            if path.exists() and config.rows.exists() and path.samefile(config.rows):  # by whatever name
                raise ConfigError(f"--metrics {path}: is the file of the rows, which it would replace; give another path")
            check_writable(path.parent)
    completions, truths, columns, lines = (list(column) for column in zip(*rows, strict=True))
    if config.task != "emotion":
        if task.metrics is None:
            raise ConfigError(f"--metrics: task {task.name} reports nothing besides its reward; leave the option out")
        metrics = task.metrics
        return lambda: dict(metrics(completions, truths))
    from policies.vlm.tasks.emotion_metrics import au_list, read_answer, report

    units = au_list(config.au_list)
    descriptions = [text if isinstance(text := row.get("description"), str) else "" for row in columns]
    groups = [] if config.group_by else None
    for row, line in zip(columns, lines, strict=True) if groups is not None else ():
        meta = row.get("meta_info")
        value = row.get(config.group_by, meta.get(config.group_by) if isinstance(meta, dict) else None)
        if value is None:
            raise DataError(f"{config.rows} line {line}: has no {config.group_by!r}, neither as a column nor in meta_info")
        groups.append(str(value))
    endpoint = None
    if config.judge_url:
        if not any(text.strip() for text in descriptions):
            raise DataError(f"{config.rows}: no row has a description; the judge needs one to compare with")
        endpoint = Endpoint(config.judge_url, config.judge_model, key_env=config.judge_key_env)

    def summarise() -> dict[str, Any]:
        found = report(completions, truths, units=units, mode=config.mode, descriptions=descriptions, groups=groups)
        if endpoint is not None:
            pairs = [(read_answer(text, config.mode).reasoning, wanted) for text, wanted in zip(completions, descriptions, strict=True)]
            pairs = [pair for pair in pairs if pair[1].strip()]
            found["judge"] = judge_analyses(endpoint, *(list(column) for column in zip(*pairs, strict=True)))
            endpoint.close()
        return found

    return summarise


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"--metrics {path}: cannot be written ({error.strerror}); give the path of a JSON file") from error


def _read_columns(path: Path, task: Task) -> Iterator[Columns]:
    for number, row in read_objects(path, strict=True):
        where = f"{path} line {number}"
        if not isinstance(row.get("completion"), str):
            raise DataError(f"{where}: needs a string completion")
        try:
            yield row["completion"], task.read_truth(row), row, number
        except DataError as error:
            raise DataError(f"{where}: {error}") from error


JUDGE_PROMPT = """You compare an analysis of a facial expression with a reference about the same face.

Reference: {reference}

Analysis: {analysis}

How well does the analysis agree with the reference: the facial movements it names, the emotion, and how one follows from the other? Give
a whole number from 1 (contradicts it) to 10 (says the same). Answer with that number alone, inside <score></score>."""
JUDGE_SCORE = re.compile(r"<score>\s*(10|[1-9])\s*</score>")


def read_score(text: str | None, error: str = "") -> tuple[int | None, str]:
    """The score in a judge's answer, and why there is none: the error, where there is no answer."""
    if text is None:
        return None, error
    found = JUDGE_SCORE.findall(text)
    if len(found) != 1:
        return None, f"no single score from 1 to 10 in {text[:200]!r}"
    return int(found[0]), ""


def judge_analyses(endpoint: Endpoint, analyses: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Scores of some analyses.

    Returns:
        `judge` (the model's name), `mean` over the scored rows (None if there are none), `scored`, `failed`, `scores` (None where there
        is none) and `failures` (place and reason).
    """
    scores: list[int | None] = []
    failures: list[dict[str, Any]] = []
    texts = [JUDGE_PROMPT.format(reference=reference, analysis=analysis) for analysis, reference in zip(analyses, references, strict=True)]
    for reply in endpoint.ask([Question(text) for text in texts]):
        score, reason = read_score(reply.text, reply.error)
        if score is None:
            failures.append({"row": len(scores) + 1, "reason": reason})
        scores.append(score)
    known = [score for score in scores if score is not None]
    return {
        "judge": endpoint.model,
        "mean": sum(known) / len(known) if known else None,
        "scored": len(known),
        "failed": len(failures),
        "scores": scores,
        "failures": failures,
    }
