"""Entry point of `make-preferences SUBCOMMAND`. Imports nothing heavy: `--help` must answer at once."""

from portraitkit.cli import run_command, run_subcommand

SUBCOMMANDS = {
    "build": ("build:build_pairs", "preference pairs of retouches, from photos or from synthetic people", "data/photos --output-dir pairs"),
    "lint": ("lint:lint_data", "check a data set: bad pictures, duplicates across splits, anchors, contradictions", "pairs"),
    "annotate": ("annotate:annotate", "judge pairs: a web page for people, endpoints for models", "pairs --web"),
    "merge": ("merge:merge", "verdicts of several annotators into one data set", "pairs"),
    "export": ("merge:export", "a data set as parquet for Hugging Face datasets", "pairs --output-dir pairs-parquet"),
    "emotion": ("emotion:build_emotion_rows", "rows of a published facial-expression data set", "raf-db data/raf-db"),
    "makeup": ("makeup_pairs:build_makeup_pairs", "photos with and without makeup, and the truth about it", "data/faces --count 1000"),
}


def make_preferences() -> None:
    """Console command `make-preferences SUBCOMMAND ...`: build, check, annotate, merge and export data sets."""
    about, package = "Build, check and annotate data sets", "preference_data.commands"
    run_command(lambda argv: run_subcommand("make-preferences", about, package, SUBCOMMANDS, argv))


if __name__ == "__main__":  # torchrun -m preference_data.main build ...
    make_preferences()
