"""Values that were computed before, by the picture's hash, the metric, its weights' hash and its version.

Of several processes each keeps its values in a file of its own (`ShardStore`); one merges them into the cache.
"""

import base64
import sqlite3
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from portraitkit.runs.shards import ShardFile

CHUNK = 500
FILE = "values.sqlite"
DIGESTS = 1000  # In one row of a shard's file
Known = TypeVar("Known")


class Store:
    """A cache of values and features in one SQLite file of a folder; in memory where there is none, or where it cannot be written."""

    def __init__(self, folder: Path | None) -> None:
        self.note = ""
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            self._open(":memory:" if folder is None else str(folder / FILE))
        except (sqlite3.Error, OSError) as error:
            self.note = f"cache {folder}: cannot be used ({error}); values are not kept for the next run"
            print(f"note: {self.note}", file=sys.stderr)
            self._open(":memory:")

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
        self._base.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ShardStore(Store):
    """Values that one shard computes: in memory, and in the shard's file. What an earlier run kept in the cache goes into that file, too.

    The cache itself is only read: an SQLite file must not be written by several machines. Where it cannot be read, it is left alone.
    """

    def __init__(self, file: ShardFile, cache: Store) -> None:
        super().__init__(None)
        self.file, self.cache, self._lost = file, cache, False
        self._before = self._ask(cache.digests, {})
        for row in file.rows:
            super().add(*_read(row))
            self._before |= row.get("digests", {})
        file.rows.clear()

    def _ask(self, read: Callable[[], dict[str, Known]], nothing: dict[str, Known]) -> dict[str, Known]:
        """What the cache says; nothing from the first time on that it fails, as it may on a network file system."""
        if self._lost:
            return nothing
        try:
            return read()
        except sqlite3.Error as error:
            print(f"note: the cache cannot be read ({error}); what it holds is computed again", file=sys.stderr)
            self._lost = True
            return nothing

    def _features_of(self, keys: list[str]) -> dict[str, Tensor]:
        known = sorted(self.cache.known_features(keys))
        return dict(zip(known, self.cache.features(known), strict=True)) if known else {}

    def digests(self) -> dict[str, str]:
        return dict(self._before)

    def values(self, keys: Iterable[str]) -> dict[str, float]:
        keys = list(keys)
        known = super().values(keys)
        older = self._ask(lambda: self.cache.values(key for key in keys if key not in known), {})
        if older:
            self.add(older)
        return known | older

    def known_features(self, keys: Iterable[str]) -> set[str]:
        keys = list(keys)
        known = super().known_features(keys)
        older = self._ask(lambda: self._features_of([key for key in keys if key not in known]), {})
        if older:
            self.add({}, older)
        return known | older.keys()

    def add(self, values: Mapping[str, float], features: Mapping[str, Float[Tensor, " dim"]] | None = None) -> None:
        """Keep a batch's results in the shard's file, and in memory."""
        super().add(values, features)
        if values:
            self.file.append({"values": {key: None if value != value else value for key, value in values.items()}})
        for key, row in (features or {}).items():
            data = row.float().contiguous().cpu().numpy().astype("<f4").tobytes()
            self.file.append({"features": {key: base64.b64encode(data).decode("ascii")}})

    def add_digests(self, digests: Mapping[str, str]) -> None:
        """Keep those that were computed here: the merging process need not read the pictures again."""
        new = [(key, digest) for key, digest in digests.items() if key not in self._before]
        for start in range(0, len(new), DIGESTS):
            self.file.append({"digests": dict(new[start : start + DIGESTS])})


def merge_into(store: Store, shards: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Put the values of all shards into the cache. Of a value that several computed, that of the first shard counts, whoever was faster."""
    values: dict[str, float] = {}
    seen: set[str] = set()
    for row in (row for shard in shards for row in shard):
        some, features = _read(row)
        for key, value in some.items():
            values.setdefault(key, value)
        store.add({}, {key: vector for key, vector in features.items() if key not in seen})
        seen |= features.keys()
        store.add_digests(row.get("digests", {}))
    store.add(values)


def _read(row: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, Tensor]]:
    values = {key: float("nan") if value is None else float(value) for key, value in row.get("values", {}).items()}
    features = {
        key: torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype="<f4").copy()) for key, text in row.get("features", {}).items()
    }
    return values, features
