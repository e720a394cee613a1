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
    return {"make": _make, "serve": _serve, "report": _report, "export": _export}[argv[0]](argv[1:])


def _make(argv: list[str]) -> int:
    from benchmarks.blind_test.options import MakeConfig
    from portraitkit.config import load_config

    config = load_config(MakeConfig, argv, prog="blind-test make")
    from benchmarks.blind_test.make import make_study

    return make_study(config, [sys.argv[0], "make", *argv])


def _serve(argv: list[str]) -> int:
    from benchmarks.blind_test.options import ServeConfig
    from portraitkit.config import load_config

    config = load_config(ServeConfig, argv, prog="blind-test serve")
    from benchmarks.blind_test.server import serve_study

    return serve_study(config)


def _report(argv: list[str]) -> int:
    from benchmarks.blind_test.options import ReportConfig
    from portraitkit.config import load_config

    config = load_config(ReportConfig, argv, prog="blind-test report")
    from benchmarks.blind_test.study_report import report_study

    return report_study(config)


def _export(argv: list[str]) -> int:
    from benchmarks.blind_test.options import ExportConfig
    from portraitkit.config import load_config

    config = load_config(ExportConfig, argv, prog="blind-test export")
    from benchmarks.blind_test.export import export_votes

    return export_votes(config)
