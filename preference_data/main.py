"""Entry point of `make-preferences SUBCOMMAND`. Imports nothing heavy: `--help` must answer at once."""

from portraitkit.cli import command, run_subcommand

SUBCOMMANDS = {
    "build": ("build:build_pairs", "preference pairs of retouches, from photos or from synthetic people", "data/photos --output-dir pairs"),
    "lint": ("lint:lint_data", "check a data set: bad pictures, duplicates across splits, anchors, contradictions", "pairs"),
    "annotate": ("annotate:annotate", "judge pairs: a web page for people, endpoints for models", "pairs --web"),
    "merge": ("merge:merge", "verdicts of several annotators into one data set", "pairs"),
    "export": ("merge:export", "a data set as parquet for Hugging Face datasets", "pairs --output-dir pairs-parquet"),
    "emotion": ("emotion:build_emotion_rows", "rows of a published facial-expression data set", "raf-db data/raf-db"),
    "makeup": ("makeup_pairs:build_makeup_pairs", "photos with and without makeup, and the truth about it", "data/faces --count 1000"),
}


@command
def make_preferences(argv: list[str]) -> int:
    """Build, check, annotate, merge and export data sets."""
    return run_subcommand("make-preferences", "Build, check and annotate data sets", "preference_data.commands", SUBCOMMANDS, argv)


if __name__ == "__main__":  # torchrun -m preference_data.main build ...
    make_preferences()
