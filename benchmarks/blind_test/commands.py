"""Entry point of `blind-test SUBCOMMAND`. Imports nothing heavy: `--help` must answer at once."""

import sys

from portraitkit.cli import run_command
from portraitkit.errors import ConfigError

SUBCOMMANDS = {
    "make": "pictures of several methods -> a folder with the study",
    "serve": "the study as a web page, on this machine unless told otherwise",
    "report": "win rates, strengths, groups, agreement: JSON, Markdown and HTML",
    "export": "every vote with the methods' names, as CSV or JSON lines",
}


def blind_test() -> None:
    """Console command `blind-test make|serve|report|export`: which pictures do people prefer?"""
    run_command(_dispatch)


def _dispatch(argv: list[str]) -> int:
    from portraitkit.suggest import nearest

    names = ", ".join(SUBCOMMANDS)
    if argv and argv[0] in ("-h", "--help"):
        print("usage: blind-test SUBCOMMAND [options]\n\nA blind test with people; each subcommand has its own --help.\n")
        print("\n".join(f"  {name:<8} {words}" for name, words in SUBCOMMANDS.items()))
        return 0
    if not argv:
        raise ConfigError(f"blind-test: needs a subcommand: {names}; see blind-test --help")
    if argv[0] not in SUBCOMMANDS:
        raise ConfigError(f"blind-test {argv[0]}: no such subcommand{nearest(argv[0], SUBCOMMANDS)}; known: {names}")
    return _run(argv[0], argv[1:])


def _run(name: str, argv: list[str]) -> int:
    from benchmarks.blind_test import options
    from portraitkit.config import load_config

    prog, example = f"blind-test {name}", "runs/blind-test"
    if name == "make":
        config = load_config(options.MakeConfig, argv, prog=prog, example="--method base=runs/base --method ours=runs/ours")
        from benchmarks.blind_test.make import make_study

        return make_study(config, [sys.argv[0], name, *argv])
    if name == "serve":
        config = load_config(options.ServeConfig, argv, prog=prog, example=example)
        from benchmarks.blind_test.server import serve_study

        return serve_study(config)
    if name == "report":
        config = load_config(options.ReportConfig, argv, prog=prog, example=example)
        from benchmarks.blind_test.study_report import report_study

        return report_study(config)
    config = load_config(options.ExportConfig, argv, prog=prog, example=example)
    from benchmarks.blind_test.export import export_votes

    return export_votes(config)
