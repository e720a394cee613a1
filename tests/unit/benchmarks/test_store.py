"""What a shard keeps of values and features, what it takes from the cache, and what the merge makes of it."""

import math

import torch

from benchmarks.store import ShardStore, Store, merge_into
from portraitkit.runs.shards import Shard, ShardFile, merged_rows


def test_values_and_features_reach_the_cache_as_they_were(tmp_path):
    generator = torch.Generator().manual_seed(0)
    vectors = {name: torch.randn(7, generator=generator) for name in ("x", "y", "z")}
    with Store(tmp_path / "cache") as cache:
        cache.add({"old": 0.1 + 0.2}, {"z": vectors["z"]})
        cache.add_digests({"p": "1"})
        with ShardFile(tmp_path, Shard(0, 2), {}) as file, ShardStore(file, cache) as store:
            store.add({"a": 1 / 3, "b": float("nan")}, {"x": vectors["x"]})
            assert store.digests() == {"p": "1"}
            store.add_digests({"p": "1", "q": "2"})
        with ShardFile(tmp_path, Shard(0, 2), {}) as file, ShardStore(file, cache) as store:
            known = store.values(["a", "b", "c", "old"])
            assert known["a"] == 1 / 3 and math.isnan(known["b"]) and known["old"] == 0.1 + 0.2 and "c" not in known
            assert store.known_features(["x", "y", "z"]) == {"x", "z"} and store.digests() == {"p": "1", "q": "2"}
            file.finish()
    with ShardFile(tmp_path, Shard(1, 2), {}) as file, Store(None) as empty, ShardStore(file, empty) as store:
        store.add({"a": 2.0, "c": 3.0}, {"x": vectors["x"] + 1, "y": vectors["y"]})  # a was measured by both
        file.finish()
    with Store(tmp_path / "other") as merged:
        merge_into(merged, merged_rows(tmp_path))
        values = merged.values(["a", "b", "c", "old"])
        assert (values["a"], values["c"], values["old"]) == (1 / 3, 3.0, 0.1 + 0.2) and math.isnan(values["b"])
        assert torch.equal(merged.features(["x", "y", "z"]), torch.stack([vectors["x"], vectors["y"], vectors["z"]]))
        assert merged.digests() == {"q": "2"}


def test_a_cache_that_cannot_be_read_is_left_alone(tmp_path, capsys):
    cache = Store(None)
    cache.close()
    with ShardFile(tmp_path, Shard(0, 1), {}) as file, ShardStore(file, cache) as store:
        store.add({"a": 1.0})
        assert store.values(["a", "b"]) == {"a": 1.0} and store.known_features(["x"]) == set()
    assert capsys.readouterr().err.count("the cache cannot be read") == 1
