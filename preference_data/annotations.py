"""Judgements of people and models on disk, what they add up to, and where they conflict.

One file an annotator, `DATA/annotations/<name>.jsonl`, only ever appended to; the last row of a pair, annotator and order counts.
Verdicts are stored about the files a and b, never about the places where they were shown.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from portraitkit import votes
from portraitkit.errors import DataError
from portraitkit.files.jsonl import Rejected, append_line, read_json_lines
from portraitkit.report.page import plural
from preference_data.schema import ASPECTS, DIMENSIONS, TITLES, Pair, choice_of, read_scores, read_verdicts, text_of
from preference_data.verdict import ORDERS, VERDICTS, Order, Verdict, turned, winner

FOLDER, UNREADABLE = "annotations", "unreadable.jsonl"
"""Where judgements are, and in which of its files are answers that cannot be read; no annotator's file has that name."""
LONGEST = 1e9  # Most seconds that a judgement may take
Role = Literal["annotator", "senior"]
Judgements = dict[str, dict[str, dict[str, Verdict]]]  # annotator -> pair id -> dimension (and "overall") -> verdict
KEYS = ("pair", "annotator", "role", "order", "verdicts", "overall", "scores", "reasoning", "seconds")


@dataclass(frozen=True)
class Judgement:
    """One annotator's word on one pair."""

    pair: str  # its id
    annotator: str  # a person's or a model's name
    role: Role  # a senior's word settles a conflict
    order: Order  # how the candidates were shown
    verdicts: dict[str, Verdict]  # about a and b, on all five dimensions
    overall: Verdict  # about a and b
    scores: dict[str, tuple[float, float]] | None = None  # of a and b, where the annotator gives scores
    reasoning: str = ""  # in words
    seconds: float | None = None  # it took; None where not measured

    @property
    def named(self) -> dict[str, Verdict]:
        """The verdicts on the dimensions, and the one that is named "overall"."""
        return {**self.verdicts, "overall": self.overall}


def judgement_of(row: dict[str, Any]) -> Judgement:
    """Read one row, strictly; DataError for a key that is unknown, missing, or holds an impossible value."""
    if unknown := next((key for key in row if key not in KEYS), None):
        raise DataError(f"key {unknown!r} is unknown; a judgement has {', '.join(KEYS)}")
    pair, annotator, reasoning = text_of(row, "pair"), text_of(row, "annotator"), text_of(row, "reasoning", "")
    choices = (("role", ("annotator", "senior")), ("order", ORDERS), ("overall", VERDICTS))
    role, order, overall = (choice_of(key, row.get(key), known) for key, known in choices)
    verdicts, seconds = read_verdicts(row.get("verdicts")), row.get("seconds")
    if verdicts is None:
        raise DataError("verdicts: missing")
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= LONGEST):
        raise DataError(f"seconds: must be a number from 0 to {LONGEST:.0f}, or null")
    return Judgement(pair, annotator, role, order, verdicts, overall, read_scores(row.get("scores")), reasoning, seconds)


def file_of(folder: Path, annotator: str) -> Path:
    """The file of one annotator: letters of the name, and a hash where it has others or is taken, so that two names never share one."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", annotator).strip("-")[:60]
    if stem != annotator or f"{stem}.jsonl".casefold() == UNREADABLE:
        stem = f"{stem or 'annotator'}-{hashlib.sha256(annotator.encode()).hexdigest()[:8]}"
    return folder / FOLDER / f"{stem}.jsonl"


def append_judgement(folder: Path, judgement: Judgement) -> None:
    """Append one judgement to its annotator's file, on disk when this returns."""
    append_line(file_of(folder, judgement.annotator), vars(judgement))


def read_judgements(folder: Path, extra: tuple[Path, ...] = ()) -> tuple[list[Judgement], list[tuple[Path, Rejected]]]:
    """The counting judgements of all annotators of a pair set, those in `extra` files of people who worked elsewhere among them, and the
    rows that cannot be read.

    Raises:
        DataError: an extra file cannot be opened.
    """
    latest: dict[tuple[str, str, str, str], Judgement] = {}
    rejected = []
    files = sorted(path for path in (folder / FOLDER).glob("*.jsonl") if path.name != UNREADABLE and not path.name.startswith("."))
    for path in (*files, *extra):
        row_set = read_json_lines(path, judgement_of)
        rejected += [(path, row) for row in row_set.rejected]
        for row in row_set.rows:
            latest[row.pair, row.annotator, row.role, row.order] = row
    return list(latest.values()), rejected


def both_orders(judgements: list[Judgement]) -> list[Judgement]:
    """One judgement for each pair, annotator and role: where both orders were judged, the means of the scores, and an overall tie
    where the two orders contradict each other."""
    groups: dict[tuple[str, str, str], list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        groups[judgement.pair, judgement.annotator, judgement.role].append(judgement)
    merged = []
    for one, two in ((group[0], group[-1]) for group in groups.values()):
        verdicts: dict[str, Verdict] = {name: _common([one.verdicts[name], two.verdicts[name]]) or "tie" for name in DIMENSIONS}
        scores = _means([one.scores, two.scores]) if one.scores and two.scores else None
        if scores and one is not two:
            verdicts = {name: winner(a, b) for name, (a, b) in scores.items()}
        merged.append(replace(one, verdicts=verdicts, overall=_common([one.overall, two.overall]) or "tie", scores=scores))
    return merged


def _means(scores: Sequence[dict[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    a, b = ({name: sum(each[name][side] for each in scores) / len(scores) for name in DIMENSIONS} for side in (0, 1))
    return {name: (a[name], b[name]) for name in DIMENSIONS}


def conflicts(judgements: list[Judgement]) -> dict[str, list[str]]:
    """Pair -> the dimensions (and "overall") on which one annotator says a and another b, until a senior has settled it.

    A verdict against a tie is no conflict: the majority decides.
    """
    groups: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in both_orders(judgements):
        groups[judgement.pair].append(judgement)
    disputes = {
        pair: [name for name in ASPECTS if {"a", "b"} <= {judgement.named[name] for judgement in group}]
        for pair, group in groups.items()
        if all(judgement.role != "senior" for judgement in group)
    }
    return {pair: disputed for pair, disputed in disputes.items() if disputed}


def consensus(pair: Pair, judgements: list[Judgement]) -> Pair | None:
    """The pair with what its annotators agree on: a senior's word, else the majority on each dimension and overall.

    Scores are means. None where nobody judged it, or where annotators are in open conflict (see `conflicts`) without a majority.
    """
    judged = [judgement for judgement in judgements if judgement.pair == pair.id]
    if not judged:
        return None
    deciding = [judgement for judgement in judged if judgement.role == "senior"][-1:] or judged
    verdicts: dict[str, Verdict] = {}
    for name in ASPECTS:
        verdict = _common([judgement.named[name] for judgement in deciding])
        if verdict is None:
            return None
        verdicts[name] = verdict
    overall = verdicts.pop("overall")
    scored = [judgement.scores for judgement in deciding if judgement.scores]
    scores = _means(scored) if scored and len(scored) == len(deciding) else None
    if scores and any((a > b and verdicts[name] == "b") or (b > a and verdicts[name] == "a") for name, (a, b) in scores.items()):
        scores = None
    names = ", ".join(dict.fromkeys(judgement.annotator for judgement in deciding))
    # What was said about Image1 and Image2 is kept about a and b.
    words = [one.reasoning if one.order == "ab" else turned(one.reasoning) for one in deciding if one.overall == overall]
    reasoning = next((text for text in words if text), "")
    return replace(pair, verdicts=verdicts, overall=overall, scores=scores, annotator=names, reasoning=reasoning)


def table_of(judgements: list[Judgement]) -> Judgements:
    """Judgements as `agreement` takes them; seniors are left out, they have seen that there is a conflict."""
    table: Judgements = {}
    for judgement in judgements:
        if judgement.role == "annotator":
            table.setdefault(judgement.annotator, {})[judgement.pair] = judgement.named
    return table


def _common(verdicts: list[Verdict]) -> Verdict | None:
    """The most frequent verdict; a tie where "a" and "tie" (or "b" and "tie") are as frequent; None between a and b."""
    counts: Counter[Verdict] = Counter(verdicts)
    most = max(counts.values())
    top: list[Verdict] = [verdict for verdict in counts if counts[verdict] == most]
    if len(top) == 1:
        return top[0]
    return None if {"a", "b"} <= set(top) else "tie"


# ---- how far annotators agree and which system wins: Krippendorff's alpha, equal verdicts, Bradley-Terry scores, and their tables

SCALE: tuple[Verdict, ...] = ("b", "tie", "a")


@dataclass(frozen=True)
class Agreement:
    """Agreement of several annotators on one dimension."""

    # Krippendorff's alpha of the verdicts on the ordinal scale b, tie, a; None where it is not defined (fewer than two annotators in
    # common, or one verdict everywhere)
    alpha: float | None
    equal: float | None  # share of equal verdicts among all pairs of annotators of the same pair; None where nobody shares a pair
    pairs: int  # how many pairs have at least two verdicts


def agreement(judgements: Judgements) -> dict[str, Agreement]:
    """Agreement on each of the five dimensions and overall."""
    ids = sorted({pair for rows in judgements.values() for pair in rows})
    result = {}
    for dimension in ASPECTS:
        verdicts = [[rows[pair][dimension] for rows in judgements.values() if dimension in rows.get(pair, {})] for pair in ids]
        counts = np.array([[values.count(verdict) for verdict in SCALE] for values in verdicts], int).reshape(len(ids), len(SCALE))
        counts = counts[counts.sum(1) >= 2]
        alpha = votes.ordinal_alpha(counts)
        seen = counts.sum(1)
        equal = (counts * (counts - 1)).sum(1) / (seen * (seen - 1))
        result[dimension] = Agreement(alpha if np.isfinite(alpha) else None, float(equal.mean()) if len(equal) else None, len(counts))
    return result


def bradley_terry(duels: list[tuple[str, str, Verdict]], *, prior: float = 0.5) -> dict[str, float]:
    """Strengths of systems from duels (system of a, system of b, verdict); a tie is half a win for each, a duel of a system with itself
    counts for nothing. For `prior` see `portraitkit.votes.bradley_terry`.

    Returns system -> log-odds strength, mean 0: P(x beats y) = sigmoid(strength of x - strength of y).
    """
    duels = [duel for duel in duels if duel[0] != duel[1]]
    names = sorted({name for duel in duels for name in duel[:2]})
    if not names:
        return {}
    row = {name: place for place, name in enumerate(names)}
    wins = np.zeros((len(names), len(names)))
    for a, b, verdict in duels:
        share = {"a": 1.0, "tie": 0.5, "b": 0.0}[verdict]
        wins[row[a], row[b]] += share
        wins[row[b], row[a]] += 1 - share
    return dict(zip(names, votes.bradley_terry(wins, prior=prior).tolist(), strict=True))


def agreement_report(judgements: list[Judgement], pairs: list[Pair]) -> dict[str, Any]:
    """Agreement among annotators and between the orders of one annotator, Bradley-Terry scores of the generators, conflicts.

    Returns:
        `annotators`: name -> judged pairs; `agreement`: dimension -> alpha, equal, pairs; `flips`: annotator -> dimension -> share of pairs
        whose winner changes with the order; `bradley_terry`: generator -> log-odds strength of the overall verdicts; `conflicts`: pair ->
        disputed dimensions.
    """
    joined = both_orders(judgements)
    names = {pair.id: pair for pair in pairs}
    duels: list[tuple[str, str, Verdict]] = [
        (names[row.pair].origin_a.generator, names[row.pair].origin_b.generator, row.overall)
        for row in joined
        if row.pair in names and row.role == "annotator"
    ]
    table = table_of(joined)
    return {
        "annotators": {name: len(rows) for name, rows in table.items()},
        "agreement": {name: vars(found) for name, found in agreement(table).items()} if table else {},
        "flips": _flips(judgements),
        "bradley_terry": bradley_terry(duels),
        "conflicts": conflicts(judgements),
    }


def print_agreement(judgements: list[Judgement], pairs: list[Pair]) -> None:
    """Print the report's tables on standard output."""
    report = agreement_report(judgements, pairs)
    if not report["annotators"]:
        return
    console = Console(markup=False, highlight=False)  # names may hold brackets
    flips = report["flips"]
    table = Table(title=f"Agreement of {', '.join(report['annotators'])} (Krippendorff's alpha)", title_justify="left")
    table.add_column("dimension")
    for column in ("alpha", "equal", "pairs", *(f"flips of {name}" for name in flips)):
        table.add_column(column, justify="right")
    for name in ASPECTS:
        found = report["agreement"][name]
        shares = [found["alpha"], found["equal"], *(flips[annotator][name] for annotator in flips)]
        alpha, equal, *turned_shares = ("-" if value is None else f"{value:.2f}" for value in shares)
        table.add_row(TITLES.get(name, "Overall"), alpha, equal, str(found["pairs"]), *turned_shares)
    console.print(table)
    if report["bradley_terry"]:
        order = sorted(report["bradley_terry"].items(), key=lambda item: -item[1])
        scores = ", ".join(f"{name} {score:+.2f}" for name, score in order)
        console.print(f"Bradley-Terry, overall: {scores}")
    if count := len(report["conflicts"]):
        console.print(f"{plural(count, 'pair')} in conflict: a senior settles them on the page (annotate DATA --web)")


def _flips(judgements: list[Judgement]) -> dict[str, dict[str, float]]:
    """Annotator -> dimension -> share of the pairs judged in both orders whose verdicts differ."""
    by_order = {(row.annotator, row.pair, row.order): row for row in judgements}
    both: dict[str, list[tuple[Judgement, Judgement]]] = {}
    for (name, pair, order), row in by_order.items():
        if order == "ab" and (other := by_order.get((name, pair, "ba"))):
            both.setdefault(name, []).append((row, other))
    return {
        annotator: {name: sum(a.named[name] != b.named[name] for a, b in both[annotator]) / len(both[annotator]) for name in ASPECTS}
        for annotator in sorted(both)
    }
