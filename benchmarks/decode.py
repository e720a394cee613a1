"""Reading batches beside computing: a thread decodes two batches ahead, each picture once."""

import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.metric import Metric, Pictures
from benchmarks.plan import Batch
from portraitkit.errors import ImageError
from portraitkit.pictures.images import read_image, resize

AHEAD = 2

Decoded = tuple[Pictures | None, Batch, list[Metric], list[tuple[str, str, str]]]


def decoded(todo: Sequence[tuple[Batch, list[Metric]]]) -> Iterator[Decoded]:
    """Batches with their pictures, read by a thread that stays two batches ahead."""
    ready: queue.Queue[Decoded | BaseException | None] = queue.Queue(maxsize=AHEAD)
    over = threading.Event()

    def put(item: Decoded | BaseException | None) -> None:
        while not over.is_set():
            try:
                return ready.put(item, timeout=0.2)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch, wanted in todo:
                if over.is_set():
                    return
                put(_read_batch(batch, wanted))
            put(None)
        except BaseException as error:  # handed to the thread that waits
            put(error)

    thread = threading.Thread(target=work, name="decoder", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        over.set()
        thread.join()


def _read_batch(batch: Batch, wanted: list[Metric]) -> Decoded:
    """The pictures of a batch; a picture that cannot be read leaves an empty one behind, with an empty id, and a reason."""
    problems: dict[Path, str] = {}
    known: dict[Path, Tensor] = {}

    def read(path: Path) -> Float[Tensor, "3 h w"] | None:
        if path not in known and path not in problems:
            try:
                pixels = read_image(path).pixels
                same = pixels.shape[1:] == (batch.height, batch.width)
                known[path] = pixels if same else resize(pixels, (batch.height, batch.width))
            except ImageError as error:
                problems[path] = str(error)
        return known.get(path)

    rows = []
    for item in batch.items:
        paths = [path for path in (item.path, item.source, item.reference) if path is not None]
        rows.append([read(path) for path in paths] if all(read(path) is not None for path in paths) else None)
    failed = [(str(path), "", reason) for path, reason in problems.items()]
    whole = next((row for row in rows if row is not None), None)
    if whole is None:
        return None, batch, wanted, failed
    stacks = [torch.stack([row[part] if row else torch.zeros_like(whole[0]) for row in rows]) for part in range(len(whole))]
    source = stacks[1] if batch.items[0].source else None
    reference = stacks[-1] if batch.items[0].reference else None
    ids = tuple(str(item.source or item.path) if row else "" for item, row in zip(batch.items, rows, strict=True))
    return Pictures(stacks[0], source, reference, ids), batch, wanted, failed
