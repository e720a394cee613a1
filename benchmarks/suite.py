"""The suite: every metric on every picture, each picture decoded once, every value kept for the next run.

On a CPU metrics run beside each other, each on one core: convolutions and matrix products of this size gain less from a second core than
two of them do from one each, and a value does not depend on how many cores there are. On a GPU they follow one another.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.batches import SET, Batch, Plan, applies, decoded, keys, plan_batches
from benchmarks.inputs import Inputs, Item
from benchmarks.metric import Metric, Pictures, Score, with_known
from benchmarks.store import Store
from benchmarks.weight_files import Digests, MetricWeights
from portraitkit.errors import ConfigError, DataError, WeightsError
from portraitkit.pictures.images import image_size
from portraitkit.runs.shards import Shard


@dataclass
class Results:
    """What a run measured."""

    inputs: Inputs  # what was measured
    metrics: list[Metric] = field(default_factory=list)  # those with values, in the tables' order
    values: dict[str, Float[Tensor, " n"]] = field(default_factory=dict)  # metric -> one value an item, NaN where there is none
    pooled: dict[str, dict[str, float]] = field(default_factory=dict)  # metric -> method -> value of a set metric
    skipped: dict[str, str] = field(default_factory=dict)  # metric -> why it has no values
    # (file, metric or "", reason) of pictures that could not be read or measured
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    weights: dict[str, MetricWeights] = field(default_factory=dict)  # metric -> its files
    computed: int = 0  # values computed in this run; the others were known
    stopped: bool = False  # whether the run was interrupted


@dataclass
class Suite:
    """One run over given inputs."""

    metrics: Sequence[tuple[Metric, MetricWeights]]  # whose weights were found and checked
    store: Store
    digest: Digests
    max_failed: float = 0.1  # share of pictures that may be unreadable
    progress: Callable[[int, int], None] = lambda done, total: None  # called with (done, total) pictures times metrics
    stop: Callable[[], bool] = lambda: False  # asked between batches whether to end
    device: str = "cpu"  # where metrics compute
    dtype: str | None = None  # of networks on a GPU; None: their own choice

    def __post_init__(self) -> None:
        if self.device != "cpu":
            where = f" on {self.device.partition(':')[0]}, {self.dtype or 'own type'}"
            self.metrics = [(metric, replace(weights, where=where)) for metric, weights in self.metrics]
        self._seconds: dict[str, float] = {}

    def run(self, inputs: Inputs, shard: Shard | None = None) -> Results:
        """Measure all inputs, or a shard's share of their batches; who is measured with whom does not depend on it. A shard gathers
        nothing. DataError: more pictures than allowed cannot be read."""
        results = Results(inputs, weights={metric.name: weights for metric, weights in self.metrics})
        plan = plan_batches(inputs, self.device)
        if shard is not None:
            plan = Plan(shard.share(plan.batches), plan.refused)
        results.failed += [(str(path), "", reason) for path, reason in plan.refused.items()]
        self._check_failed(results)
        lacking = [[metric for metric, weights in self.metrics if self._missing(metric, weights, batch)] for batch in plan.batches]
        todo = list(zip(plan.batches, lacking, strict=True))
        scores = self._open({metric.name for _, wanted in todo for metric in wanted}, results)
        todo = [(batch, [metric for metric in wanted if metric.name in scores]) for batch, wanted in todo]
        self._measure([work for work in todo if work[1]], scores, results)
        self.store.add_digests(self.digest.known)
        if shard is None:
            results.failed.sort()  # found in an order that depends on what was known before
            self._collect(results, plan)
        return results

    def _measure(self, todo: list[tuple[Batch, list[Metric]]], scores: dict[str, Score], results: Results) -> None:
        """Compute and keep what is missing; the batch after the one that is waited for is under way."""
        total = sum(len(batch.items) * len(wanted) for batch, wanted in todo)
        done = 0
        self.progress(0, total)
        flying: deque[tuple[Batch, list[Metric], dict[str, Job]]] = deque()

        def land() -> None:
            nonlocal done
            batch, wanted, jobs = flying.popleft()
            for metric in wanted:
                if metric.name in jobs:
                    self._keep(metric, jobs[metric.name], results)
                done += len(batch.items)
                self.progress(done, total)

        with one_core_each() if self.device == "cpu" else one_at_a_time() as (pool, cores):
            ahead = 1 + math.ceil(cores / max(1, len(scores)))
            for pictures, batch, wanted, problems in decoded(todo):
                if self.stop():
                    results.stopped = True
                    break
                results.failed += problems
                self._check_failed(results)
                jobs = {} if pictures is None else self._start(pool, wanted, scores, pictures.to(self.device), batch, results)
                flying.append((batch, wanted, jobs))
                while len(flying) >= ahead:
                    land()
            if results.stopped:
                for _, _, jobs in flying:
                    for job in jobs.values():
                        job.future.cancel()
            while flying:
                land()

    def _missing(self, metric: Metric, weights: MetricWeights, batch: Batch) -> dict[int, str]:
        """Rows of a batch that a metric has no value of yet, and the names these are to be kept under."""
        if not applies(metric, batch):
            return {}
        names = keys(metric, weights, batch.items, self.digest)
        known = self.store.known_features(names) if metric.reference == "set" else self.store.values(names).keys()
        return {row: name for row, name in enumerate(names) if name not in known}

    def _open(self, names: set[str], results: Results) -> dict[str, Score]:
        scores: dict[str, Score] = {}
        for metric, weights in self.metrics:
            if metric.name in names:
                try:
                    scores[metric.name] = with_known(metric.open, device=self.device, dtype=self.dtype)(weights.files)
                except WeightsError as error:
                    results.skipped[metric.name] = str(error)
        return scores

    def _start(
        self, pool: ThreadPoolExecutor, wanted: list[Metric], scores: dict[str, Score], pictures: Pictures, batch: Batch, results: Results
    ) -> "dict[str, Job]":
        """Let every metric measure those pictures of a batch that lack its value, the slowest so far first."""
        jobs = {}
        for metric in sorted(wanted, key=lambda metric: -self._seconds.get(metric.name, 0.0)):
            missing = self._missing(metric, results.weights[metric.name], batch)
            rows = [row for row in missing if pictures.sources[row]]
            if rows:
                paths = [str(batch.items[row].path) for row in rows]
                future = pool.submit(_measured, metric.name, scores[metric.name], pictures.select(rows), paths)
                jobs[metric.name] = Job([missing[row] for row in rows], future)
        return jobs

    def _keep(self, metric: Metric, job: "Job", results: Results) -> None:
        if job.future.cancelled():
            return
        values, failed, self._seconds[metric.name] = job.future.result()
        known = {name: value for name, value in zip(job.names, values, strict=True) if value is not None}
        if metric.reference == "set":
            self.store.add({}, known)
        else:
            self.store.add({name: float(value) for name, value in known.items()})
        results.failed += failed
        results.computed += len(job.names)

    def _check_failed(self, results: Results) -> None:
        unreadable = {file for file, metric, _ in results.failed if not metric}
        count = len(results.inputs.items) + len(results.inputs.sets)
        if len(unreadable) > self.max_failed * count:
            raise DataError(
                f"{len(unreadable)} of {count} pictures cannot be read, more than --max-failed {self.max_failed:g} allows; "
                f"the first: {results.failed[0][2]}"
            )

    def _collect(self, results: Results, plan: Plan) -> None:
        """All values, from the store; metrics without any are skipped with the reason."""
        count = len(results.inputs.items)
        for metric, weights in self.metrics:
            if metric.name in results.skipped:
                continue
            batches = [batch for batch in plan.batches if applies(metric, batch)]
            if metric.reference == "set":
                self._pool(metric, weights, batches, results)
                continue
            values = torch.full((count,), math.nan, dtype=torch.float64)
            for batch in batches:
                names = keys(metric, weights, batch.items, self.digest)
                known = self.store.values(names)
                values[list(batch.rows)] = torch.tensor([known.get(name, math.nan) for name in names], dtype=torch.float64)
            if values.isfinite().any():
                results.metrics.append(metric)
                results.values[metric.name] = values
            elif not results.stopped:
                results.skipped[metric.name] = _why_nothing(metric, plan, batches, results.inputs)

    def _pool(self, metric: Metric, weights: MetricWeights, batches: list[Batch], results: Results) -> None:
        if not results.inputs.sets:
            results.skipped[metric.name] = "compares with a set of pictures: give a folder by --set"
            return
        assert metric.pool is not None
        of_method: dict[str, list[str]] = {}
        for batch in batches:
            for item, name in zip(batch.items, keys(metric, weights, batch.items, self.digest), strict=True):
                of_method.setdefault(item.method, []).append(name)
        known = {method: sorted(self.store.known_features(names)) for method, names in of_method.items()}
        target = self.store.features(known.pop(SET)) if known.get(SET) else torch.empty(0, 1)
        pooled = {method: metric.pool(self.store.features(names), target) for method, names in known.items() if names and len(target)}
        pooled = {method: value for method, value in pooled.items() if math.isfinite(value)}
        if pooled:
            results.metrics.append(metric)
            results.pooled[metric.name] = pooled
        elif not results.stopped:
            results.skipped[metric.name] = "needs at least two readable pictures a method and two in --set"


def _why_nothing(metric: Metric, plan: Plan, batches: list[Batch], inputs: Inputs) -> str:
    if batches:
        return f"no picture has a value: {metric.missing}"
    items = [item for batch in plan.batches for item in batch.items if item.method != SET]
    if metric.reference == "full" and not any(item.reference for item in items):
        company = [(item, item.reference) for item in inputs.items if item.reference]
        return _no_frame(company, "reference", plan) or "compares with a known good retouch: give the folder by --reference"
    if metric.reference == "source" and not any(item.source for item in items):
        company = [(item, item.source) for item in inputs.items if item.source]
        return _no_frame(company, "photo", plan) or "compares with the untouched photo: give the folder by --source"
    largest = max((min(batch.height, batch.width) for batch in plan.batches), default=0)
    return f"the shorter side of every picture is below {metric.smallest} px (the largest has {largest})"


def _no_frame(company: Sequence[tuple[Item, Path]], kind: str, plan: Plan) -> str:
    """Why no picture can be compared with what it stands beside; empty where nothing does."""
    readable = [(item, other) for item, other in company if not {item.path, other} & plan.refused.keys()]
    if not company or not readable:
        return f"no picture and its {kind} can both be read" if company else ""
    item, other = readable[0]
    (height, width), (whole_height, whole_width) = image_size(item.path), image_size(other)
    return (
        f"every picture has another shape than its {kind}: {item.name} of {item.method} is {width} x {height} px, its {kind} "
        f"{whole_width} x {whole_height}; give pictures of the same frame, at any resolution"
    )


@dataclass(frozen=True)
class Job:
    """A metric at work on pictures of a batch: the names under which values are kept, and (values, failures, seconds) to come."""

    names: list[str]
    future: "Future[tuple[list[Tensor | None], list[tuple[str, str, str]], float]]"


@contextmanager
def one_core_each() -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """As many threads as torch would use, in each of which torch uses one."""
    cores = torch.get_num_threads()
    pool = ThreadPoolExecutor(cores, thread_name_prefix="metric")
    torch.set_num_threads(1)
    try:
        yield pool, cores
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)


@contextmanager
def one_at_a_time() -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """One thread, which keeps a GPU busy; batches are read beside it."""
    with ThreadPoolExecutor(1, thread_name_prefix="metric") as pool:
        yield pool, 1


def _measured(
    metric: str, score: Score, pictures: Pictures, paths: list[str]
) -> tuple[list[Tensor | None], list[tuple[str, str, str]], float]:
    """Values of a batch, why some are missing, and seconds. After a picture was refused, one by one: the others get their values."""
    start = time.perf_counter()
    failed: list[tuple[str, str, str]] = []
    try:
        values: list[Tensor | None] = [*_call(metric, score, pictures)]
    except (DataError, torch.OutOfMemoryError):
        values = []
        for row, path in enumerate(paths):
            try:
                values += _call(metric, score, pictures.select([row]))
            except (DataError, torch.OutOfMemoryError) as error:
                values.append(None)
                failed.append((path, metric, str(error).partition("\n")[0]))
    return values, failed, time.perf_counter() - start


def _call(metric: str, score: Score, pictures: Pictures) -> list[Tensor]:
    with torch.inference_mode():
        values = score(pictures).cpu()  # a number, or some features, a picture
    if values.dim() not in (1, 2) or len(values) != len(pictures):
        rule = "must be one value a picture, or one row of features for a set"
        raise ConfigError(f"metric {metric}: returned {tuple(values.shape)} for {len(pictures)} pictures; {rule}")
    if values.dim() == 1:
        values = torch.where(values.isfinite(), values.double(), math.nan)
    return list(values)
