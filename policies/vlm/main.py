"""Entry point of `score-completions`. Imports nothing heavy: `--help` must answer at once."""

from portraitkit.cli import run_command


def score_completions() -> None:
    """Console command `score-completions ROWS.jsonl`: verifiable rewards of completions, without a model."""
    run_command(_score)


def _score(argv: list[str]) -> int:
    from policies.vlm.score import score_main

    return score_main(argv)
