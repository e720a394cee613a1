"""Entry point of `make-preferences SUBCOMMAND`. Imports nothing heavy: `--help` must answer at once."""

from portraitkit.cli import run_command
from portraitkit.errors import ConfigError

EXAMPLES = {
    "build": "data/photos --output-dir data/preferences",
    "lint": "data/preferences",
    "annotate": "data/preferences --web",
    "merge": "data/preferences",
    "export": "data/preferences --output-dir data/preferences-parquet",
    "emotion": "raf-db data/raf-db",
    "makeup": "data/faces --count 1000",
}
"""Options of a typical call of each subcommand, for its --help."""
SUBCOMMANDS = {
    "build": ("BuildConfig", "build:build_pairs", "preference pairs of retouches, from photos or from synthetic people"),
    "lint": ("LintConfig", "lint:lint_data", "check a data set: bad pictures, duplicates across splits, anchors, contradictions"),
    "annotate": ("AnnotateConfig", "annotate:annotate", "judge pairs: a web page for people, endpoints for models"),
    "merge": ("MergeConfig", "merge:merge", "verdicts of several annotators into one data set"),
    "export": ("ExportConfig", "merge:export", "a data set as parquet for Hugging Face datasets"),
    "emotion": ("EmotionConfig", "emotion:build_emotion_rows", "rows of a published facial-expression data set"),
    "makeup": ("MakeupConfig", "makeup_pairs:build_makeup_pairs", "photos with and without makeup, and the truth about it"),
}
"""Name -> (its options in `commands.options`, its function of them in `commands`, what it makes)."""


def make_preferences() -> None:
    """Console command `make-preferences SUBCOMMAND ...`: build, check, annotate, merge and export data sets."""
    run_command(_dispatch)


def _dispatch(argv: list[str]) -> int:
    from portraitkit.config import load_config
    from portraitkit.discover import load_object
    from portraitkit.suggest import nearest

    names = ", ".join(SUBCOMMANDS)
    if argv and argv[0] in ("-h", "--help"):
        print("usage: make-preferences SUBCOMMAND [options]\n\nBuild, check and annotate data sets; each subcommand has its own --help.\n")
        print("\n".join(f"  {name:<12} {words}" for name, (*_, words) in SUBCOMMANDS.items()))
        return 0
    if not argv:
        raise ConfigError(f"make-preferences: needs a subcommand: {names}; see make-preferences --help")
    if argv[0] not in SUBCOMMANDS:
        raise ConfigError(f"make-preferences {argv[0]}: no such subcommand{nearest(argv[0], SUBCOMMANDS)}; known: {names}")
    options, function, _ = SUBCOMMANDS[argv[0]]
    cls, prog = load_object(f"preference_data.commands.options:{options}"), f"make-preferences {argv[0]}"
    config = load_config(cls, argv[1:], prog=prog, example=EXAMPLES[argv[0]])
    return load_object(f"preference_data.commands.{function}")(config)


if __name__ == "__main__":  # torchrun -m preference_data.main build ...
    make_preferences()
