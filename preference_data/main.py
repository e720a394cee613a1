"""Entry point of `make-preferences SUBCOMMAND`. Imports nothing heavy: `--help` must answer at once."""

from portraitkit.cli import run_command
from portraitkit.errors import ConfigError

SUBCOMMANDS = {
    "build": ("preference_data.commands.entry:build", "preference pairs of retouches, from photos or from synthetic people"),
    "lint": ("preference_data.commands.entry:lint", "check a data set: bad pictures, duplicates across splits, anchors, contradictions"),
    "annotate": ("preference_data.commands.entry:annotate", "judge pairs: a web page for people, endpoints for models"),
    "merge": ("preference_data.commands.entry:merge", "verdicts of several annotators into one data set"),
    "export": ("preference_data.commands.entry:export", "a data set as parquet for Hugging Face datasets"),
    "emotion": ("preference_data.commands.emotion_command:emotion_main", "rows of a published facial-expression data set"),
    "makeup": ("preference_data.commands.makeup_command:makeup_main", "photos with and without makeup, and the truth about it"),
}
"""Name -> (where its function of the remaining arguments is, what it makes)."""


def make_preferences() -> None:
    """Console command `make-preferences SUBCOMMAND ...`: build, check, annotate, merge and export data sets."""
    run_command(_dispatch)


def _dispatch(argv: list[str]) -> int | None:
    from portraitkit.discover import load_object
    from portraitkit.suggest import nearest

    known = ", ".join(SUBCOMMANDS)
    if argv and argv[0] in ("-h", "--help"):
        print("usage: make-preferences SUBCOMMAND [options]\n\nBuild, check and annotate data sets; each subcommand has its own --help.\n")
        print("\n".join(f"  {name:<12} {words}" for name, (_, words) in SUBCOMMANDS.items()))
        return 0
    if not argv:
        raise ConfigError(f"make-preferences: needs a subcommand: {known}; see make-preferences --help")
    if argv[0] not in SUBCOMMANDS:
        raise ConfigError(f"make-preferences {argv[0]}: no such subcommand{nearest(argv[0], SUBCOMMANDS)}; known: {known}")
    return load_object(SUBCOMMANDS[argv[0]][0])(argv[1:])


if __name__ == "__main__":  # torchrun -m preference_data.main build ...
    make_preferences()
