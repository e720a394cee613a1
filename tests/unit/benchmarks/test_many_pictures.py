"""Ten thousand pictures: memory stays flat, an interrupt resumes, and the result is that of the uninterrupted run."""

import os
import time
from pathlib import Path

import pytest
import torch

from benchmarks.inputs import match, read_folder
from benchmarks.metrics import load_metrics
from benchmarks.store import Store
from benchmarks.suite import Suite
from benchmarks.weight_files import Digests, find_weights
from portraitkit.pictures.images import write_image

COUNT = 10_000
MIB = 40
"""By how much the process may grow between a fifth of the way and its end; the pictures' pixels alone are 190 MiB."""


def resident() -> float:
    """MiB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="resident memory is read from /proc")
def test_ten_thousand_pictures(tmp_path, portrait, record_property):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(COUNT):
        side, top, left = (32, 40, 48)[number % 3], number // 400, number % 400
        write_image(folder / f"{number:05d}.png", portrait[0, :, top : top + side, left : left + side])
    inputs = match({"x": read_folder(folder, folder)}, None, None)
    metrics = [(metric, find_weights(metric, [Path("/nowhere")], Digests())) for metric in load_metrics(("brisque", "piqe"))]
    memory: list[tuple[float, float]] = []

    def watch(done: int, total: int) -> None:
        if total and (not memory or done / total > memory[-1][0] + 0.05):
            memory.append((done / total, resident()))

    start = time.perf_counter()
    with Store(None) as store:
        whole = Suite(metrics, store, Digests(), progress=watch).run(inputs)
    record_property("seconds", time.perf_counter() - start)
    record_property("memory", memory)
    assert whole.computed == 2 * COUNT and not whole.failed
    early = next(mib for share, mib in memory if share > 0.2)
    assert max(mib for share, mib in memory if share > 0.2) - early < MIB, memory

    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 120

    with Store(tmp_path / "cache") as store:
        part = Suite(metrics, store, Digests(), stop=stop).run(inputs)
        assert part.stopped and COUNT / 2 < part.computed < 1.5 * COUNT
    with Store(tmp_path / "cache") as store:
        rest = Suite(metrics, store, Digests()).run(inputs)
    assert part.computed + rest.computed == whole.computed
    for name, values in whole.values.items():
        assert torch.equal(values.nan_to_num(-1e9), rest.values[name].nan_to_num(-1e9)), name
