"""`blind-test report`: results.json, report.md and report.html in the study's folder; `blind-test export`: every vote as a table."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.blind_test.options import ExportConfig, ReportConfig
from benchmarks.blind_test.study import CHECK, VOTES, Study, read_study
from benchmarks.blind_test.vote_store import Vote, read_votes
from portraitkit import votes as vote_stats
from portraitkit.errors import DataError, RunFolderError
from portraitkit.files.atomic import write_csv, write_text, writing
from portraitkit.files.jsonl import finite, write_lines
from portraitkit.report.charts import Interval, IntervalPlot
from portraitkit.report.page import markdown_text, page_environment, plural, write_page
from portraitkit.stats import ALPHA, holm

TEMPLATES = Path(__file__).parent / "templates"
SHARE_TICKS = [(0.0, "0 %"), (0.25, "25 %"), (0.5, "50 %"), (0.75, "75 %"), (1.0, "100 %")]
HURRIED = 1.0  # seconds; a rater with less a vote, at the median, is named
COLUMNS = ("rater", "position", "kind", "photo", "left", "right", "choice", "preferred", "seconds", "failed_checks_of_rater")
Json = dict[str, Any]


def report_study(config: ReportConfig) -> int:
    """Read the votes, also while a server runs, and write the report; returns 0."""
    study = read_study(config.folder)
    results = analyse(study, read_votes(config.folder / VOTES), config)
    shown = context(results)
    filters = {"share": share, "ends": ends, "strength": signed, "cell": markdown_text, "words": lambda name: str(name).replace("_", " ")}
    markdown = page_environment(TEMPLATES, autoescape=False)
    markdown.filters |= filters
    with writing(config.folder):
        write_text(config.folder / "results.json", json.dumps(results, indent=2) + "\n")
        write_text(config.folder / "report.md", markdown.get_template("report.md.j2").render(shown))
        write_page(
            config.folder / "report.html", TEMPLATES / "report.html.j2", shown | {"title": f"Blind test: {results['title']}"}, **filters
        )
    console = Console(highlight=False)
    console.print(headline(results), markup=False, soft_wrap=True)
    if hurried := results["raters"]["hurried"]:
        console.print(f"{plural(len(hurried), 'rater')} took less than {HURRIED:g} s a vote (median); their votes count", soft_wrap=True)
    console.print(f"{config.folder / 'report.html'}", markup=False, soft_wrap=True)
    return 0


def export_votes(config: ExportConfig) -> int:
    """Write one row a vote, in one piece; returns 0."""
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
        "hurried": HURRIED,
        "strength_plot": _strength_plot(results),
        "group_plots": _group_plots(results),
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
    return f"{lead}: {share(rate['value'])} of votes for {best}, 95 % interval {ends(rate)}."


def verdict(pair: Json, fewest: int) -> str:
    """In words, what the raters say on a pair at the 5 % level after Holm's correction; below `fewest` raters it is not asked."""
    if pair["preferred"]:
        return f"{pair['preferred']} preferred"
    return "too few raters" if too_few(pair, fewest) else "not told apart"


def too_few(pair: Json, fewest: int) -> bool:
    """Whether so few raters compared a pair that no votes of theirs could tell it apart."""
    return pair["preferred"] is None and pair["raters"] < fewest


def _strength_plot(results: Json) -> IntervalPlot | None:
    rows = results["strengths"]
    if not rows:
        return None
    furthest = max(abs(value) for row in rows for value in row["strength"].values() if value is not None)
    reach = max(0.5, math.ceil(2 * furthest) / 2)
    ticks = [(position, f"{position:+g}" if position else "0") for position in (-reach, -reach / 2, 0.0, reach / 2, reach)]
    lines = [Interval(row["method"], **row["strength"], words=signed(row["strength"]), strong=index == 0) for index, row in enumerate(rows)]
    return IntervalPlot(lines, ticks, 0.0, "Strength of each method")


def _group_plots(results: Json) -> list[tuple[str, IntervalPlot]]:
    best = results["best"]
    out = []
    for column, values in results["groups"]["tables"].items():
        rated = [(value, table["rates"][best]) for value, table in values.items() if best and table["rates"][best]["votes"]]
        lines = [
            Interval(value, rate["value"], rate["low"], rate["high"], f"{share(rate['value'])} {ends(rate)}", True) for value, rate in rated
        ]
        if lines:
            out.append((column, IntervalPlot(lines, SHARE_TICKS, 0.5, f"Win rate of {best} by {column}")))
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


# ---- from votes to results: who counts, win rates, strengths, groups, agreement, position bias, power; all of it JSON-able

FIRST, TIE, SECOND = 0, 1, 2
SIDES = ("left", "tie", "right")


def outcome(vote: Vote) -> int:
    """FIRST if the first of the pair was chosen, SECOND, or TIE."""
    if vote.choice == "tie":
        return TIE
    return FIRST if (vote.choice == "left") != vote.cell.swapped else SECOND


def failed_checks(votes: Iterable[Vote]) -> dict[int, int]:
    """Rater -> attention checks in which the untouched picture was not chosen; raters who met none have 0."""
    out: dict[int, int] = {}
    for vote in votes:
        out.setdefault(vote.rater, 0)
        out[vote.rater] += vote.cell.pair == CHECK and outcome(vote) != FIRST
    return out


def analyse(study: Study, votes: Sequence[Vote], config: ReportConfig) -> dict[str, Any]:
    """Everything that the report shows; strengths are None where the votes do not link all methods. DataError: no votes, or none of
    raters who passed."""
    most, seed, failures = config.max_failed_checks, config.seed, failed_checks(votes)
    excluded = sorted(rater for rater, count in failures.items() if count > most)
    counted = [vote for vote in votes if vote.cell.pair != CHECK and failures[vote.rater] <= most]
    if not counted:
        who = f"all {len(excluded)} raters" if excluded[1:] else "the only rater"
        reason = f"{who} failed attention checks" if excluded else "nobody has voted yet"
        raise DataError(f"{study.folder}: {reason}; invite more raters" + (", or raise --max-failed-checks" if excluded else ""))
    by_rater = count_by_rater(study, counted)
    units = np.zeros((len(study.photos), len(study.pairs), 3), int)
    for vote in counted:
        units[vote.cell.photo, vote.cell.pair, outcome(vote)] += 1
    timed = [(vote.rater, vote.seconds) for vote in counted if vote.seconds is not None]
    hurried = [rater for rater in sorted({rater for rater, _ in timed}) if median(took for one, took in timed if one == rater) < HURRIED]
    chosen = Counter((vote.rater, vote.choice) for vote in counted)
    sides = np.array([[chosen[rater, choice] for choice in SIDES] for rater in sorted({vote.rater for vote in counted})])
    bias, bias_p = vote_stats.position_bias(sides, seed=seed)
    strengths = _strengths(study, by_rater, config.draws, seed)
    pairs = _pairs(study, by_rater, config.detect, seed)
    fewest = vote_stats.fewest_raters(len(pairs))
    more = {f"{pair['first']} and {pair['second']}": max(0, pair["needed"] - pair["votes"]) for pair in pairs}
    more_raters = max(fewest - len(by_rater), 0, math.ceil(max(more.values()) * len(pairs) / study.photos_per_rater))
    return {
        "title": study.title,
        "question": study.question,
        "methods": list(study.methods),
        "photos": len(study.photos),
        "raters": {
            "voted": len(failures),
            "counted": len(by_rater),
            "fewest": fewest,
            "left_out": excluded,
            "hurried": hurried,
            "rule": f"left out is who failed more than {most} attention checks; a tie on a check is a failure",
        },
        "votes": {
            "counted": len(counted),
            "left_out": sum(vote.cell.pair != CHECK for vote in votes) - len(counted),
            "checks": sum(vote.cell.pair == CHECK for vote in votes),
            "ties": int(by_rater[:, :, TIE].sum()),
            "median_seconds": round(median(took for _, took in timed), 2) if timed else None,
        },
        "pairs": pairs,
        "strengths": strengths,
        "best": strengths[0]["method"] if strengths else None,
        "groups": _groups(study, counted),
        "agreement": _estimate(vote_stats.alpha_interval(units.reshape(-1, 3), draws=min(500, config.draws), seed=seed)),
        "position": {"left": int(sides[:, 0].sum()), "right": int(sides[:, 2].sum()), "left_share": _estimate(bias), "p": bias_p},
        "power": {"detect": config.detect, "alpha": ALPHA, "power": 0.8, "more_votes": more, "more_raters": more_raters},
    }


def count_by_rater(study: Study, votes: Sequence[Vote]) -> np.ndarray:
    """Counts (raters, pairs, 3) of votes on pairs of methods, of those who cast one, in the order of their numbers."""
    rows = {rater: row for row, rater in enumerate(sorted({vote.rater for vote in votes}))}
    out = np.zeros((len(rows), len(study.pairs), 3), int)
    for vote in votes:
        out[rows[vote.rater], vote.cell.pair, outcome(vote)] += 1
    return out


def _pairs(study: Study, by_rater: np.ndarray, detect: float, seed: int) -> list[dict[str, Any]]:
    """What the votes say on every pair; `preferred` names the method that is, after Holm's correction, or is None."""
    out, fewest = [], vote_stats.fewest_raters(len(study.pairs))
    for row, (first, second) in enumerate(study.pairs):
        votes = by_rater[:, row]
        wins, ties, losses = map(int, votes.sum(0))
        raters, effect = int((votes.sum(1) > 0).sum()), vote_stats.design_effect(votes)
        within_reach = vote_stats.detectable_rate(wins + ties + losses, design_effect=effect) if raters >= fewest else math.nan
        out.append(
            {
                "first": first,
                "second": second,
                "raters": raters,
                "wins": wins,
                "ties": ties,
                "losses": losses,
                "votes": wins + ties + losses,
                "rate": _estimate(vote_stats.win_rate_by_rater(votes)),
                "wilson": _estimate(vote_stats.win_rate((wins, ties, losses))),
                "p": vote_stats.preference_test(votes, seed=seed),
                "design_effect": round(effect, 3),
                "needed": vote_stats.votes_needed(detect, design_effect=effect),
                "detectable": finite(within_reach),
            }
        )
    for pair, corrected in zip(out, holm([pair["p"] for pair in out]), strict=True):
        pair["p_holm"] = corrected
        pair["preferred"] = None if corrected >= ALPHA else pair["first"] if pair["wins"] > pair["losses"] else pair["second"]
    return out


def _strengths(study: Study, by_rater: np.ndarray, draws: int, seed: int) -> list[dict[str, Any]] | None:
    """Methods from the strongest to the weakest; interval and share of the draws are None where there are too few raters."""
    if not vote_stats.is_connected(by_rater.sum(0), len(study.methods)):
        return None
    fitted = vote_stats.strengths(by_rater, len(study.methods), draws=draws, seed=seed)
    found = zip(study.methods, map(vote_stats.Estimate, fitted.strengths, fitted.low, fitted.high), fitted.first, strict=True)
    rows = [{"method": method, "strength": _estimate(strength), "first": finite(first)} for method, strength, first in found]
    return sorted(rows, key=lambda row: -row["strength"]["value"])


def _groups(study: Study, votes: Sequence[Vote]) -> dict[str, Any]:
    """Column -> value -> method -> win rate against all other methods; and each method's worst group."""
    columns = sorted({column for photo in study.photos for column in photo.groups})
    tables: dict[str, Any] = {}
    worst: dict[str, Any] = {}
    for column in columns:
        tables[column] = {}
        for value in sorted({photo.groups[column] for photo in study.photos if column in photo.groups}):
            inside = {row for row, photo in enumerate(study.photos) if photo.groups.get(column) == value}
            by_rater = count_by_rater(study, [vote for vote in votes if vote.cell.photo in inside])
            rates = {method: _rate_against_all(study, by_rater, method) for method in study.methods}
            tables[column][value] = {"photos": len(inside), "votes": int(by_rater.sum()), "rates": rates}
            for method, rate in rates.items():
                if rate["votes"] and (method not in worst or rate["value"] < worst[method]["rate"]["value"]):
                    worst[method] = {"column": column, "value": value, "rate": rate}
    return {"tables": tables, "worst": worst}


def _rate_against_all(study: Study, by_rater: np.ndarray, method: str) -> dict[str, Any]:
    votes = [by_rater[:, row, :: 1 if method == pair[0] else -1] for row, pair in enumerate(study.pairs) if method in pair]
    total = np.sum(votes, axis=0)
    return _estimate(vote_stats.win_rate_by_rater(total)) | {"votes": int(total.sum())}


def _estimate(estimate: vote_stats.Estimate) -> dict[str, float | None]:
    return finite(asdict(estimate))
