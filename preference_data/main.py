"""Entry point of `make-preferences SUBCOMMAND`. Imports nothing heavy: `--help` must answer at once."""

from portraitkit.cli import run_command

SUBCOMMANDS = {
    "build": "preference_data.commands:build",
    "lint": "preference_data.commands:lint",
    "annotate": "preference_data.commands:annotate",
    "merge": "preference_data.commands:merge",
    "export": "preference_data.commands:export",
}
"""Subcommand -> module:function; a function takes the arguments after its name and returns the exit code."""


def make_preferences() -> None:
    """Console command `make-preferences SUBCOMMAND`: build, check, annotate, merge and export preference data."""
    run_command(_dispatch)


def _dispatch(argv: list[str]) -> int | None:
    from portraitkit.discover import load_object
    from portraitkit.errors import ConfigError
    from portraitkit.suggest import nearest

    known = ", ".join(SUBCOMMANDS)
    if argv[:1] in (["--help"], ["-h"]):
        print(f"usage: make-preferences SUBCOMMAND ...\n\nsubcommands: {known}\nmake-preferences SUBCOMMAND --help tells its options")
        return 0
    if not argv:
        raise ConfigError(f"make-preferences needs a subcommand: {known}; see make-preferences --help")
    if argv[0] not in SUBCOMMANDS:
        raise ConfigError(f"make-preferences {argv[0]}: unknown subcommand{nearest(argv[0], SUBCOMMANDS)}; use {known}")
    return load_object(SUBCOMMANDS[argv[0]])(argv[1:])
