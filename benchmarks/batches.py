"""Which pictures are measured together, and reading them ahead of the metrics.

Batches are planned from the files' heads over the whole run, whatever is known already. A batch is the unit of work and of resuming: an
interrupted run computes the same batches as an uninterrupted one, so its values are the same to the last bit.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.inputs import Inputs, Item
from benchmarks.metric import Metric, Pictures
from benchmarks.weight_files import Digests, MetricWeights
from portraitkit.errors import ImageError
from portraitkit.pictures.images import image_size, read_image, resize

PIXELS = {"cpu": 2**19, "cuda": 2**22}  # In a batch, by the kind of the device
PICTURES = 32
AHEAD = 2
SET = "\0set"  # Method name of the pictures that set metrics compare with


@dataclass(frozen=True)
class Batch:
    """Pictures of one size."""

    items: tuple[Item, ...]  # the pictures
    rows: tuple[int, ...]  # their places in the run's list of items; -1 for those of the comparison set
    height: int  # of all of them, in pixels
    width: int  # of all of them, in pixels


@dataclass(frozen=True)
class Plan:
    """The batches in the order they are computed, and the files whose heads could not be read, with the reason."""

    batches: list[Batch]
    refused: dict[Path, str]


def plan_batches(inputs: Inputs, device: str = "cpu") -> Plan:
    """Group the pictures by size, in the order of their names; a batch is full at 32 pictures, or at half a million pixels on a CPU and
    four million on a GPU."""
    most = PIXELS[device.partition(":")[0]]
    refused: dict[Path, str] = {}

    @cache
    def size(path: Path | None) -> tuple[int, int] | None:
        if path is None:
            return None
        try:
            return image_size(path)
        except ImageError as error:
            refused[path] = str(error)
            return None

    open_batches: dict[tuple[int, int, bool, bool], list[tuple[int, Item]]] = {}
    batches: list[tuple[tuple[int, int, bool, bool], list[tuple[int, Item]]]] = []
    everything = [*enumerate(inputs.items), *((-1, Item(str(path), SET, path)) for path in inputs.sets)]
    for row, item in everything:
        frame = size(item.path)
        if frame is None:
            continue
        source = item.source if _same_frame(frame, size(item.source)) else None
        reference = item.reference if _same_frame(frame, size(item.reference)) else None
        key = (*frame, source is not None, reference is not None)
        members = open_batches.setdefault(key, [])
        members.append((row, replace(item, source=source, reference=reference)))
        if len(members) >= max(1, min(PICTURES, most // (frame[0] * frame[1]))):
            batches.append((key, open_batches.pop(key)))
    batches += open_batches.items()
    return Plan([Batch(tuple(item for _, item in some), tuple(row for row, _ in some), *key[:2]) for key, some in batches], refused)


def _same_frame(frame: tuple[int, int], other: tuple[int, int] | None) -> bool:
    """Whether the other picture shows the same frame, at this or another resolution."""
    return other is not None and 0.99 < (frame[0] / frame[1]) / (other[0] / other[1]) < 1.01


def applies(metric: Metric, batch: Batch) -> bool:
    """Whether a metric can measure the pictures of a batch, as far as their size and company tell."""
    if any(item.method == SET for item in batch.items) and metric.reference != "set":
        return False
    needed = {"full": batch.items[0].reference, "source": batch.items[0].source}
    return needed.get(metric.reference, True) is not None and min(batch.height, batch.width) >= metric.smallest


def keys(metric: Metric, weights: MetricWeights, items: Iterable[Item], digest: Digests) -> list[str]:
    """What each picture's value is kept under."""
    tail = f"{metric.name} v{metric.version} {weights.key}"
    out = []
    for item in items:
        company = {"full": (item.reference,), "source": (item.source, item.reference)}.get(metric.reference, ())
        parts = [digest(item.path), *(digest(path) if path else "-" for path in company)]
        out.append(" ".join([*parts, tail]))
    return out


Decoded = tuple[Pictures | None, Batch, list[Metric], list[tuple[str, str, str]]]


def decoded(todo: Sequence[tuple[Batch, list[Metric]]]) -> Iterator[Decoded]:
    """Batches with their pictures, read by a thread that stays two batches ahead."""
    ahead: deque[Future[Decoded]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="decoder") as pool:
        try:
            for batch, wanted in todo:
                ahead.append(pool.submit(_read_batch, batch, wanted))
                if len(ahead) > AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read_batch(batch: Batch, wanted: list[Metric]) -> Decoded:
    """The pictures of a batch; a picture that cannot be read leaves an empty one behind, with an empty id, and a reason."""
    problems: dict[Path, str] = {}

    @cache
    def read(path: Path) -> Float[Tensor, "3 h w"] | None:
        try:
            pixels = read_image(path).pixels
        except ImageError as error:
            problems[path] = str(error)
            return None
        return pixels if pixels.shape[1:] == (batch.height, batch.width) else resize(pixels, (batch.height, batch.width))

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
