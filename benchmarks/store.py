"""Values that were computed before, by the picture's hash, the metric, its weights' hash and its version."""

import sqlite3
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 500
FILE = "values.sqlite"


class Store:
    """A cache of values and features in one SQLite file; in memory where the folder cannot be written.

    Args:
        folder: where the file lies; None keeps everything in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.note = ""
        try:
            self._open(":memory:" if folder is None else self._file(folder))
        except (sqlite3.Error, OSError) as error:
            self.note = f"cache {folder}: cannot be used ({error}); values are not kept for the next run"
            print(f"note: {self.note}", file=sys.stderr)
            self._open(":memory:")

    @staticmethod
    def _file(folder: Path) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder / FILE)

    def _open(self, where: str) -> None:
        self._base = sqlite3.connect(where, timeout=30)
        self._base.execute("PRAGMA journal_mode=WAL")
        self._base.execute("PRAGMA synchronous=NORMAL")
        self._base.execute("CREATE TABLE IF NOT EXISTS value (key TEXT PRIMARY KEY, value REAL)")
        self._base.execute("CREATE TABLE IF NOT EXISTS features (key TEXT PRIMARY KEY, data BLOB)")
        self._base.execute("CREATE TABLE IF NOT EXISTS digest (key TEXT PRIMARY KEY, sha256 TEXT)")
        self._base.commit()

    def values(self, keys: Iterable[str]) -> dict[str, float]:
        """The known ones; NaN is a value: the metric does not apply to that picture."""
        return {key: float("nan") if value is None else value for key, value in self._rows("value", "value", keys)}

    def known_features(self, keys: Iterable[str]) -> set[str]:
        """Which of them are there."""
        return {key for key, _ in self._rows("features", "1", keys)}

    def features(self, keys: Iterable[str]) -> Float[Tensor, "n dim"]:
        """Those of known keys, in the keys' order."""
        keys = list(keys)
        rows = dict(self._rows("features", "data", keys))
        return torch.stack([torch.frombuffer(bytearray(rows[key]), dtype=torch.float32) for key in keys])

    def add(self, values: Mapping[str, float], features: Mapping[str, Float[Tensor, " dim"]] | None = None) -> None:
        """Keep a batch's results, all or none."""
        with self._base:
            rows = [(key, None if value != value else value) for key, value in values.items()]
            self._base.executemany("INSERT OR REPLACE INTO value VALUES (?, ?)", rows)
            blobs = [(key, row.float().contiguous().numpy().tobytes()) for key, row in (features or {}).items()]
            self._base.executemany("INSERT OR REPLACE INTO features VALUES (?, ?)", blobs)

    def digests(self) -> dict[str, str]:
        """sha256 of files by path, size and time of change."""
        return dict(self._base.execute("SELECT key, sha256 FROM digest"))

    def add_digests(self, digests: Mapping[str, str]) -> None:
        """Keep them."""
        with self._base:
            self._base.executemany("INSERT OR REPLACE INTO digest VALUES (?, ?)", digests.items())

    def _rows(self, table: str, column: str, keys: Iterable[str]) -> list[tuple[str, Any]]:
        keys, rows = list(keys), []
        for start in range(0, len(keys), CHUNK):
            part = keys[start : start + CHUNK]
            marks = ",".join("?" * len(part))
            rows += self._base.execute(f"SELECT key, {column} FROM {table} WHERE key IN ({marks})", part).fetchall()
        return rows

    def close(self) -> None:
        """Close the file."""
        self._base.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
