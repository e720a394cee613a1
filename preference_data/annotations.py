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

from portraitkit.errors import DataError
from portraitkit.files.jsonl import Rejected, append_line, read_json_lines
from preference_data.schema import ASPECTS, DIMENSIONS, Pair, choice_of, read_scores, read_verdicts, text_of
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
    """Read one row, strictly.

    Raises:
        DataError: a key is unknown, missing, or holds an impossible value.
    """
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
    """Judgements as `preference_data.agreement` takes them; seniors are left out, they have seen that there is a conflict."""
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
