"""From votes to results: who counts, win rates, strengths, groups, agreement, position bias, power. All of it JSON-able."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import numpy as np

from benchmarks.blind_test.options import ReportConfig
from benchmarks.blind_test.study import CHECK, Study
from benchmarks.blind_test.vote_store import Vote
from portraitkit import votes as vote_stats
from portraitkit.errors import DataError
from portraitkit.files.jsonl import finite
from portraitkit.stats import ALPHA, holm

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
    """Everything that the report shows; strengths are None where the votes do not link all methods.

    Raises:
        DataError: no votes, or none of raters who passed.
    """
    most, seed, failures = config.max_failed_checks, config.seed, failed_checks(votes)
    excluded = sorted(rater for rater, count in failures.items() if count > most)
    counted = [vote for vote in votes if vote.cell.pair != CHECK and failures[vote.rater] <= most]
    if not counted:
        reason = f"all {len(excluded)} raters failed attention checks" if excluded else "nobody has voted yet"
        raise DataError(f"{study.folder}: {reason}; invite more raters" + (", or raise --max-failed-checks" if excluded else ""))
    by_rater = count_by_rater(study, counted)
    units = np.zeros((len(study.photos), len(study.pairs), 3), int)
    for vote in counted:
        units[vote.cell.photo, vote.cell.pair, outcome(vote)] += 1
    seconds = [vote.seconds for vote in counted if vote.seconds is not None]
    chosen = Counter((vote.rater, vote.choice) for vote in counted)
    sides = np.array([[chosen[rater, choice] for choice in SIDES] for rater in sorted({vote.rater for vote in counted})])
    bias, bias_p = vote_stats.position_bias(sides, seed=seed)
    strengths = _strengths(study, by_rater, config.draws, seed)
    pairs = _pairs(study, by_rater, config.detect, seed)
    fewest = vote_stats.fewest_raters(len(pairs))
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
            "rule": f"left out is who failed more than {most} attention checks; a tie on a check is a failure",
        },
        "votes": {
            "counted": len(counted),
            "left_out": sum(vote.cell.pair != CHECK for vote in votes) - len(counted),
            "checks": sum(vote.cell.pair == CHECK for vote in votes),
            "ties": int(by_rater[:, :, TIE].sum()),
            "median_seconds": round(median(seconds), 2) if seconds else None,
        },
        "pairs": pairs,
        "strengths": strengths,
        "best": strengths[0]["method"] if strengths else None,
        "groups": _groups(study, counted),
        "agreement": _estimate(vote_stats.alpha_interval(units.reshape(-1, 3), draws=min(500, config.draws), seed=seed)),
        "position": {"left": int(sides[:, 0].sum()), "right": int(sides[:, 2].sum()), "left_share": _estimate(bias), "p": bias_p},
        "power": _power(study, pairs, config.detect, missing=fewest - len(by_rater)),
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
    rows = [
        {
            "method": method,
            "strength": _estimate(vote_stats.Estimate(fitted.strengths[i], fitted.low[i], fitted.high[i])),
            "first": finite(fitted.first[i]),
        }
        for i, method in enumerate(study.methods)
    ]
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
    total = np.zeros((len(by_rater), 3), int)
    for row, (first, second) in enumerate(study.pairs):
        if method == first:
            total += by_rater[:, row]
        elif method == second:
            total += by_rater[:, row, ::-1]
    return _estimate(vote_stats.win_rate_by_rater(total)) | {"votes": int(total.sum())}


def _power(study: Study, pairs: Sequence[dict[str, Any]], detect: float, *, missing: int) -> dict[str, Any]:
    """Votes and raters still to come; `missing` raters at least, for a verdict at all."""
    more = {f"{pair['first']} and {pair['second']}": max(0, pair["needed"] - pair["votes"]) for pair in pairs}
    raters = max(missing, 0, math.ceil(max(more.values()) * len(pairs) / study.photos_per_rater))
    return {"detect": detect, "alpha": ALPHA, "power": 0.8, "more_votes": more, "more_raters": raters}


def _estimate(estimate: vote_stats.Estimate) -> dict[str, float | None]:
    return finite(asdict(estimate))
