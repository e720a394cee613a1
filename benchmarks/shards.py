"""`benchmark-portraits` in several processes: each measures its share of the batches into a file of its own, one merges the values."""

import base64
import sqlite3
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.config import BenchmarkConfig
from benchmarks.store import Store
from portraitkit.errors import ConfigError
from portraitkit.runs.shard_files import ShardFile
from portraitkit.runs.shards import Shard

DIGESTS = 1000
Known = TypeVar("Known")


class ShardStore(Store):
    """Values that one shard computes: in memory, and in the shard's file. What an earlier run kept in the cache goes into that file, too.

    The cache itself is only read: an SQLite file must not be written by several machines. Where it cannot be read, it is left alone.

    Args:
        file: of the shard; its rows are known values.
        cache: of earlier runs.
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
        """See `Store.digests`."""
        return dict(self._before)

    def values(self, keys: Iterable[str]) -> dict[str, float]:
        """See `Store.values`."""
        keys = list(keys)
        known = super().values(keys)
        older = self._ask(lambda: self.cache.values(key for key in keys if key not in known), {})
        if older:
            self.add(older)
        return known | older

    def known_features(self, keys: Iterable[str]) -> set[str]:
        """See `Store.known_features`."""
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


def check_readable(config: BenchmarkConfig) -> None:
    """Refuse what one process only can read.

    Raises:
        ConfigError: an archive among the places: several processes would unpack it at once.
    """
    for place in (*(place for _, place in config.methods()), config.source, config.reference):
        if place is not None and str(place).lower().endswith(".zip") and not str(place).startswith("retoucher:"):
            raise ConfigError(f"{place}: several processes read folders only; unpack it and name the folder")


def next_step(path: Path, shard: Shard) -> str:
    """What to do after a shard that was a job of its own."""
    return f"{path}: shard {shard} is measured; after all shards, the same command without --shard merges"


def _read(row: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, Tensor]]:
    values = {key: float("nan") if value is None else float(value) for key, value in row.get("values", {}).items()}
    features = {
        key: torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype="<f4").copy()) for key, text in row.get("features", {}).items()
    }
    return values, features
