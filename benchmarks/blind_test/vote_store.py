"""Sessions and votes in one SQLite file (write-ahead log). Every answer is on disk before the rater is told so.

Tokens of raters are stored as SHA-256 only: who reads the file cannot vote in their name. No name, no address, no browser, no date:
the consent text says what is stored, and that is all of it.
"""

import hashlib
import random
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.blind_test.study import CHECK, Cell, Study, draw_session
from portraitkit.errors import RunFolderError

CHOICES = ("left", "right", "tie")
PATIENCE = 2 * 3600
"""Seconds without an answer after which a rater's open comparisons count as free for others; the rater may still answer them.

Counted in memory, from the server's start where it is started anew: no file says when a rater was here."""
SYNCHRONOUS = "FULL"  # Every commit reaches the disk before it is confirmed: even a power cut loses no vote
SCHEMA = """
CREATE TABLE IF NOT EXISTS raters (
    id INTEGER PRIMARY KEY, token_hash TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS trials (
    id INTEGER PRIMARY KEY, token TEXT NOT NULL UNIQUE, rater INTEGER NOT NULL REFERENCES raters, position INTEGER NOT NULL,
    photo INTEGER NOT NULL, pair INTEGER NOT NULL, swapped INTEGER NOT NULL, UNIQUE (rater, position));
CREATE TABLE IF NOT EXISTS votes (
    trial INTEGER PRIMARY KEY REFERENCES trials, choice TEXT NOT NULL CHECK (choice IN ('left', 'right', 'tie')),
    seconds REAL);
"""


@dataclass(frozen=True)
class Trial:
    """One comparison of one rater; `choice` is None until it is answered."""

    id: int
    token: str
    position: int
    cell: Cell
    choice: str | None


@dataclass(frozen=True)
class Vote:
    """An answer as the report reads it; `seconds` is None where the server was started anew between showing and answering."""

    rater: int
    position: int
    cell: Cell
    choice: str
    seconds: float | None


class VoteStore:
    """The study's votes, open for one server. Calls are short and made from one thread."""

    def __init__(self, path: Path, study: Study) -> None:
        self._study = study
        self._opened = time.monotonic()
        self._shown: dict[str, float] = {}
        self._seen: dict[int, float] = {}
        self._db = _open(path)
        self._db.executescript(SCHEMA)

    def close(self) -> None:
        """Close the file; what was answered is in it already."""
        self._db.close()

    def count_raters(self) -> int:
        """Raters who agreed to take part."""
        return self._db.execute("SELECT COUNT(*) FROM raters").fetchone()[0]

    def add_rater(self) -> str:
        """Let one more rater in, with the comparisons drawn for them. Returns the rater's secret token."""
        token, now, study = secrets.token_urlsafe(24), time.monotonic(), self._study
        with _transaction(self._db):
            query = """SELECT rater, photo, pair, swapped, trial IS NOT NULL FROM trials LEFT JOIN votes ON trial = trials.id
                WHERE pair != ?"""
            shown = [
                Cell(photo, pair, bool(swapped))
                for rater, photo, pair, swapped, answered in self._db.execute(query, (CHECK,))
                if answered or now - self._seen.get(rater, self._opened) < PATIENCE
            ]
            number = self.count_raters()
            session = draw_session(
                shown,
                photos=len(study.photos),
                pairs=len(study.pairs),
                length=study.photos_per_rater,
                checks=study.attention_checks,
                generator=random.Random(f"{study.seed} {number}"),
            )
            rater = self._db.execute("INSERT INTO raters (token_hash) VALUES (?) RETURNING id", (_hash(token),)).fetchone()[0]
            self._db.executemany(
                "INSERT INTO trials (token, rater, position, photo, pair, swapped) VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (secrets.token_urlsafe(16), rater, position, cell.photo, cell.pair, cell.swapped)
                    for position, cell in enumerate(session)
                ],
            )
        self._seen[rater] = now
        return token

    def find_rater(self, token: str) -> int | None:
        """The rater with this token, or None."""
        row = self._db.execute("SELECT id FROM raters WHERE token_hash = ?", (_hash(token),)).fetchone()
        return row[0] if row else None

    def trials(self, rater: int) -> list[Trial]:
        """All comparisons of a rater, in order."""
        return self._trials("rater = ? ORDER BY position", rater)

    def find_trial(self, rater: int, token: str) -> Trial | None:
        """The comparison with this token, where it is this rater's."""
        return next(iter(self._trials("token = ? AND rater = ?", token, rater)), None)

    def _trials(self, condition: str, *values: object) -> list[Trial]:
        query = f"""SELECT id, token, position, photo, pair, swapped, choice FROM trials LEFT JOIN votes ON trial = id
            WHERE {condition}"""
        return [Trial(row[0], row[1], row[2], Cell(row[3], row[4], bool(row[5])), row[6]) for row in self._db.execute(query, values)]

    def mark_shown(self, trial: Trial) -> None:
        """Note when a comparison was first shown; kept in memory, so that no answer waits for the disk twice."""
        self._shown.setdefault(trial.token, time.monotonic())

    def vote(self, rater: int, token: str, choice: str, *, revise: bool = False) -> str | None:
        """Store a rater's answer (one of `CHOICES`) to the comparison with this token; a second one changes nothing unless it says that it
        revises the first. Returns the answer that stands, or None if the rater has no such comparison.
        """
        now, shown = time.monotonic(), self._shown.get(token)
        seconds = None if shown is None else now - shown
        self._seen[rater] = now
        with _transaction(self._db):
            row = self._db.execute("SELECT id FROM trials WHERE token = ? AND rater = ?", (token, rater)).fetchone()
            if row is None:
                return None
            conflict = "UPDATE SET choice = excluded.choice" if revise else "NOTHING"
            self._db.execute(
                f"INSERT INTO votes (trial, choice, seconds) VALUES (?, ?, ?) ON CONFLICT (trial) DO {conflict}", (row[0], choice, seconds)
            )
            return self._db.execute("SELECT choice FROM votes WHERE trial = ?", (row[0],)).fetchone()[0]


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """BEGIN IMMEDIATE, then COMMIT, or ROLLBACK where something was raised."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:  # a full disk may refuse the COMMIT itself
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def read_votes(path: Path) -> list[Vote]:
    """All answers, by rater and position; also while a server writes. RunFolderError: there is no such file, or it is damaged."""
    if not path.is_file():
        raise RunFolderError(f"{path}: missing, nobody has voted yet; run blind-test serve {path.parent} first")
    query = """SELECT rater, position, photo, pair, swapped, choice, seconds FROM votes JOIN trials ON trial = trials.id
        ORDER BY rater, position"""
    try:
        with closing(_open(path)) as db:
            return [Vote(row[0], row[1], Cell(row[2], row[3], bool(row[4])), row[5], row[6]) for row in db.execute(query)]
    except sqlite3.DatabaseError as error:
        raise RunFolderError(f"{path}: cannot be read ({error}); restore it from a copy") from error


def count_votes(path: Path) -> int:
    """How many answers a file holds; 0 where no server has written to it yet."""
    try:
        with closing(_open(path)) as db:
            has = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'votes'").fetchone()
            return db.execute("SELECT COUNT(*) FROM votes").fetchone()[0] if has else 0
    except sqlite3.DatabaseError as error:
        raise RunFolderError(f"{path}: cannot be read ({error}); move it away") from error


def _open(path: Path) -> sqlite3.Connection:
    try:
        db = sqlite3.connect(path, isolation_level=None, timeout=10, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
        db.execute("PRAGMA foreign_keys = ON")
    except sqlite3.DatabaseError as error:
        raise RunFolderError(f"{path}: cannot be opened ({error}); check the folder, or restore the file from a copy") from error
    return db


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
