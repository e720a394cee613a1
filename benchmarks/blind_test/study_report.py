"""`blind-test report`: results.json, report.md and report.html in the study's folder; `blind-test export`: every vote as a table."""

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.blind_test.analysis import analyse, failed_checks, outcome
from benchmarks.blind_test.options import ExportConfig, ReportConfig
from benchmarks.blind_test.study import CHECK, VOTES, read_study
from benchmarks.blind_test.vote_store import read_votes
from portraitkit.errors import RunFolderError
from portraitkit.files.atomic import write_csv, write_text
from portraitkit.files.jsonl import write_lines
from portraitkit.report.charts import Interval, interval_plot, outcome_bar
from portraitkit.report.page import markdown_text, page_environment, plural, write_page

TEMPLATES = Path(__file__).parent / "templates"
SHARE_TICKS = [(0.0, "0 %"), (0.25, "25 %"), (0.5, "50 %"), (0.75, "75 %"), (1.0, "100 %")]
COLUMNS = ("rater", "position", "kind", "photo", "left", "right", "choice", "preferred", "seconds", "failed_checks_of_rater")
Json = dict[str, Any]


def report_study(config: ReportConfig) -> int:
    """Read the votes, also while a server runs, and write the report; returns 0.

    Raises:
        RunFolderError: no study, no votes file, or the folder cannot be written.
        DataError: no votes that count.
    """
    study = read_study(config.folder)
    results = analyse(study, read_votes(config.folder / VOTES), config)
    shown = context(results)
    filters = {"share": share, "ends": ends, "strength": signed, "cell": markdown_text, "words": _words}
    markdown = page_environment(TEMPLATES, autoescape=False)
    markdown.filters |= filters
    try:
        write_text(config.folder / "results.json", json.dumps(results, indent=2) + "\n")
        write_text(config.folder / "report.md", markdown.get_template("report.md.j2").render(shown))
        write_page(
            config.folder / "report.html", TEMPLATES / "report.html.j2", shown | {"title": f"Blind test: {results['title']}"}, **filters
        )
    except OSError as error:
        raise RunFolderError(f"{error.filename}: could not be written ({error.strerror}); check the folder and the disk") from error
    console = Console(highlight=False)
    console.print(headline(results), markup=False, soft_wrap=True)
    console.print(f"{config.folder / 'report.html'}", markup=False, soft_wrap=True)
    return 0


def export_votes(config: ExportConfig) -> int:
    """Write one row a vote, in one piece; returns 0.

    Raises:
        RunFolderError: no study, no votes, the file is there already, or it cannot be written.
    """
    if config.output.exists() and not config.overwrite:
        raise RunFolderError(f"--output {config.output}: is there already; use --overwrite or another name")
    study, votes = read_study(config.folder), read_votes(config.folder / VOTES)
    failures, rows = failed_checks(votes), []
    for vote in votes:
        check = vote.cell.pair == CHECK
        shown = ("original", "spoiled") if check else study.pairs[vote.cell.pair]
        left, right = shown[::-1] if vote.cell.swapped else shown
        values = (vote.rater, vote.position, "check" if check else "pair", study.photos[vote.cell.photo].name, left, right, vote.choice)
        seconds = None if vote.seconds is None else round(vote.seconds, 3)
        values += ((shown[0], "tie", shown[1])[outcome(vote)], seconds, failures[vote.rater])
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    if config.output.suffix.lower() == ".csv":
        write_csv(config.output, COLUMNS, rows)
    else:
        write_lines(config.output, rows)
    print(f"{config.output}: {len(rows)} votes")
    return 0


def context(results: Json) -> Json:
    """What the templates of the page and of the Markdown file show."""
    votes, raters = results["votes"], results["raters"]
    seconds = "unknown time" if votes["median_seconds"] is None else f"{votes['median_seconds']:.1f} s"
    return results | {
        "headline": headline(results),
        "seconds": seconds,
        "facts": [
            ("raters counted", f"{raters['counted']} of {raters['voted']}"),
            ("votes counted", f"{votes['counted']:,}"),
            ("photos", results["photos"]),
            ("ties", share(votes["ties"] / votes["counted"])),
            ("median time a vote", seconds),
        ],
        "verdict": verdict,
        "strength_plot": _strength_plot(results),
        "group_plots": _group_plots(results),
        "outcome_bar": outcome_bar,
    }


def headline(results: Json) -> str:
    """The one sentence: who is preferred, and how sure that is."""
    rows, fewest = results["strengths"], results["raters"]["fewest"]
    if not rows:
        return "Too few votes: not every method was compared with the others, directly or through a third."
    best, second = rows[0]["method"], rows[1]["method"]
    pair = next(pair for pair in results["pairs"] if {pair["first"], pair["second"]} == {best, second})
    if not pair["votes"]:
        return f"No verdict: {best} and {second}, which stand highest, were not yet compared."
    if too_few(pair, fewest):
        raters = plural(pair["raters"], "rater")
        return f"No verdict: {raters} compared {best} with {second}; it takes {fewest} to tell a preference from chance."
    rate = pair["rate"]
    if pair["first"] != best:
        rate = {"value": 1 - rate["value"], "low": 1 - rate["high"], "high": 1 - rate["low"]}
    lead = f"{best} is preferred to {second}" if pair["preferred"] == best else f"No clear winner between {best} and {second}"
    return f"{lead}: {share(rate['value'])} of votes, 95 % interval {ends(rate)}."


def verdict(pair: Json, fewest: int) -> str:
    """In words, what the raters say on a pair at the 5 % level after Holm's correction; below `fewest` raters it is not asked."""
    if pair["preferred"]:
        return f"{pair['preferred']} preferred"
    return "too few raters" if too_few(pair, fewest) else "not told apart"


def too_few(pair: Json, fewest: int) -> bool:
    """Whether so few raters compared a pair that no votes of theirs could tell it apart."""
    return pair["preferred"] is None and pair["raters"] < fewest


def _strength_plot(results: Json) -> str:
    rows = results["strengths"]
    if not rows:
        return ""
    furthest = max(abs(value) for row in rows for value in row["strength"].values() if value is not None)
    reach = max(0.5, math.ceil(2 * furthest) / 2)
    ticks = [(position, f"{position:+g}" if position else "0") for position in (-reach, -reach / 2, 0.0, reach / 2, reach)]
    lines = [Interval(row["method"], **row["strength"], words=signed(row["strength"]), strong=index == 0) for index, row in enumerate(rows)]
    return interval_plot(lines, ticks=ticks, middle=0.0, title="Strength of each method")


def _group_plots(results: Json) -> list[tuple[str, str]]:
    best = results["best"]
    out = []
    for column, values in results["groups"]["tables"].items():
        rated = [(value, table["rates"][best]) for value, table in values.items() if best and table["rates"][best]["votes"]]
        lines = [
            Interval(value, rate["value"], rate["low"], rate["high"], f"{share(rate['value'])} {ends(rate)}", True) for value, rate in rated
        ]
        if lines:
            out.append((column, interval_plot(lines, ticks=SHARE_TICKS, middle=0.5, title=f"Win rate of {best} by {column}")))
    return out


def signed(strength: Json) -> str:
    """A strength with its interval, where there is one.

    >>> signed({"value": 0.5, "low": 0.25, "high": 0.75}), signed({"value": -1, "low": None, "high": None})
    ('+0.50 [+0.25, +0.75]', '-1.00')
    """
    reach = "" if strength["low"] is None else f" [{strength['low']:+.2f}, {strength['high']:+.2f}]"
    return f"{strength['value']:+.2f}{reach}"


def share(value: float | None) -> str:
    """A share in percent.

    >>> share(0.7312), share(None)
    ('73.1 %', 'unknown')
    """
    return "unknown" if value is None else f"{100 * value:.1f} %"


def ends(rate: Json) -> str:
    """An interval of a share, in percent.

    >>> ends({"low": 0.5, "high": 0.625})
    '[50.0, 62.5]'
    """
    return "" if rate["low"] is None else f"[{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def _words(name: object) -> str:
    return str(name).replace("_", " ")
