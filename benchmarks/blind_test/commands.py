"""Entry point of `blind-test SUBCOMMAND`. Imports nothing heavy: `--help` must answer at once."""

from portraitkit.cli import run_command, run_subcommand

STUDY = "runs/blind-test"
SUBCOMMANDS = {
    "make": ("make:make_study", "pictures of several methods -> a folder with the study", "--method base=runs/base ours=runs/ours"),
    "serve": ("server:serve_study", "the study as a web page, on this machine unless told otherwise", STUDY),
    "report": ("study_report:report_study", "win rates, strengths, groups, agreement: JSON, Markdown and HTML", STUDY),
    "export": ("study_report:export_votes", "every vote with the methods' names, as CSV or JSON lines", STUDY),
}


def blind_test() -> None:
    """Console command `blind-test make|serve|report|export`: which pictures do people prefer?"""
    run_command(lambda argv: run_subcommand("blind-test", "A blind test with people", "benchmarks.blind_test", SUBCOMMANDS, argv))
