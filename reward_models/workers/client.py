"""Rewards scored by workers (`serve-rewards`) over HTTP: units are shared among them, retried, and moved to another when one fails.

A worker that is silent, slow, busy or wrong is left alone for a while that doubles with every failure, or for as long as it asks (503).
Where none has scored anything for `patience` seconds, or all refuse for good, `WorkersLost` is raised: the run saves itself and ends.
"""

import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from portraitkit.endpoint import check_url, read_key, retry_after
from portraitkit.errors import ConfigError, DataError, WorkersLost, nearest
from reward_models.judge.judge import Counts
from reward_models.judge.reward import NEED_ANCHORS, Form, split_argument
from reward_models.photos import Photos
from reward_models.reward import GroupReward, Parts, RewardFunction
from reward_models.verifiable import REWARDS
from reward_models.workers.wire import PROTOCOL, SERVICE, TOKEN_ENV, own_version, pack, unpack_answer

UNDER_WAY = 2  # Requests a worker gets at once: one is scored while the next is on its way
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
FOR_GOOD = {
    400: "did not understand the request; use the same version of portraitkit on both sides",
    401: "refused the token; set REWARD_WORKER_TOKEN to the worker's",
    403: "refused the request; check what stands between",
    404: "has no /v1/score; check the URL",
    413: "found the request too large; raise its --max-request-mib",
}
"""Statuses after which asking this worker again is of no use."""
BUGS = 3  # Times that a unit may end in an error inside workers (500) before it is not tried again


@dataclass
class Worker:
    """One worker, as the run knows it."""

    url: str  # up to the port
    client: Any  # of httpx, with the token
    serves: dict[str, str]  # reward -> fingerprint, of the run's rewards
    most: int  # bytes of its largest request
    under_way: int = 0  # requests it has now
    failures: int = 0  # in a row
    free_at: float = 0.0  # it is left alone until then (monotonic clock)
    answered_at: float = 0.0  # when it last scored something
    trouble: str = ""  # what was wrong last
    out: str = ""  # why it is never asked again; empty while it may be
    scored: int = 0  # units
    failed: int = 0  # requests that brought no values
    busy: int = 0  # requests that it was too busy for


@dataclass
class _Job:
    workers: list[Worker]
    names: list[str]
    unit: tuple[Tensor, Photos]
    future: "Future[Parts]" = field(default_factory=Future)


class RewardWorkers:
    """The workers of a run. Use `connect`, which asks each of them what it serves. `patience` are the seconds without any value after which
    the run ends; `say` is told, once, of every worker that begins to fail and of every one that is back."""

    def __init__(self, workers: Sequence[Worker], *, patience: float, say: Callable[[str], object] = lambda text: None) -> None:
        self.workers, self.patience, self.say = list(workers), patience, say
        self.counts: dict[str, Counts] = {}
        self.give_up: Callable[[], bool] = lambda: False
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(UNDER_WAY * len(self.workers))]
        for thread in self._threads:  # daemons: a request to a worker that hangs must not keep a run from ending
            thread.start()

    @property
    def served(self) -> set[str]:
        """Names of the run's rewards that any worker serves."""
        return {name for worker in self.workers for name in worker.serves}

    def submit(self, names: Sequence[str], candidates: Float[Tensor, "n 3 h w"], photos: Photos) -> "list[Future[Parts]]":
        """Begin to score one unit; see `reward.Elsewhere`. Rewards that the same workers serve are one request."""
        bundles: dict[tuple[int, ...], list[str]] = {}
        for name in names:
            serving = tuple(place for place, worker in enumerate(self.workers) if name in worker.serves)
            bundles.setdefault(serving, []).append(name)
        jobs = [_Job([self.workers[place] for place in places], bundle, (candidates, photos)) for places, bundle in bundles.items()]
        for job in jobs:
            self._jobs.put(job)
        return [job.future for job in jobs]

    def score(self, names: Sequence[str], candidates: Float[Tensor, "n 3 h w"], photos: Photos) -> Parts:
        """Score one unit and wait for it."""
        return {name: value for future in self.submit(names, candidates, photos) for name, value in future.result().items()}

    def figures(self) -> dict[str, dict[str, int]]:
        """What each worker did, by its URL."""
        return {one.url: {"scored": one.scored, "failed": one.failed, "busy": one.busy} for one in self.workers}

    def close(self) -> None:
        """End the threads; what is under way is given up."""
        self._stop.set()
        for _ in self._threads:
            self._jobs.put(None)
        for worker in self.workers:
            worker.client.close()

    # ---- one thread

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                parts = self._score(job)
            except BaseException as error:  # whoever waits for the values must learn why there are none
                job.future.set_exception(error)
            else:
                job.future.set_result(parts)

    def _score(self, job: _Job) -> Parts:
        candidates, photos = job.unit
        body = pack({name: job.workers[0].serves[name] for name in job.names}, candidates, photos)
        started, bugs = time.monotonic(), 0
        while True:
            worker = self._take(job.workers, started)
            status, answer = self._post(worker, body)
            if status == 200:
                try:
                    parts, counts = unpack_answer(answer, job.names, len(candidates))
                except DataError as error:
                    self._failed(worker, str(error))
                    continue
                self._answered(worker, counts)
                return {name: value.to(candidates.device) for name, value in parts.items()}
            bugs += status == 500
            if bugs >= BUGS:
                raise WorkersLost(f"reward worker {worker.url}: failed {bugs} times at the same pictures ({worker.trouble}); see its log")

    def _post(self, worker: Worker, body: bytes) -> tuple[int, bytes]:
        """One request; 0 where it brought no answer. Takes note of everything but success."""
        import httpx

        if len(body) > worker.most:
            self._out(worker, 413, f"{len(body) / 2**20:.1f} MiB")
            return 413, b""
        try:
            response = worker.client.post(f"{worker.url}/v1/score", content=body)
        except httpx.TimeoutException as error:
            self._failed(worker, f"no answer in time ({type(error).__name__})")
            return 0, b""
        except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: closed by another thread
            self._failed(worker, f"no connection ({type(error).__name__})")
            return 0, b""
        words = " ".join(response.text[:200].split()) if response.status_code != 200 else ""
        if response.status_code == 503:
            self._busy(worker, retry_after(response), words)
        elif response.status_code in FOR_GOOD:
            self._out(worker, response.status_code, words)
        elif response.status_code != 200:
            self._failed(worker, f"HTTP {response.status_code}: {words}")
        return response.status_code, response.content

    def _take(self, workers: Sequence[Worker], started: float) -> Worker:
        """The least loaded worker that is not left alone now; waits for one.
        WorkersLost: the patience is at its end, all refuse for good, or the run is being stopped."""
        while True:
            with self._lock:
                able = [worker for worker in workers if not worker.out]
                now = time.monotonic()
                silent = now - max(started, *(worker.answered_at for worker in workers))
                free = [worker for worker in able if worker.free_at <= now]
                if free and silent < self.patience and not self._stop.is_set():
                    chosen = min(free, key=lambda worker: (worker.under_way, worker.scored))
                    chosen.under_way += 1
                    return chosen
                wait = min((worker.free_at for worker in able), default=now) - now
                troubles = "; ".join(f"{worker.url}: {worker.out or worker.trouble or 'busy'}" for worker in workers)
            if not able:
                raise WorkersLost(f"no reward worker is left ({troubles})")
            if silent >= self.patience:
                raise WorkersLost(f"no reward worker scored anything for {self.patience:g} s ({troubles})")
            if self._stop.is_set() or self.give_up():
                raise WorkersLost(f"stopped while no reward worker answered ({troubles})")
            self._stop.wait(min(max(wait, 0.01), 0.5))

    # ---- what is known of a worker

    def _answered(self, worker: Worker, counts: dict[str, dict[str, int]]) -> None:
        with self._lock:
            back = worker.failures > 0
            worker.under_way -= 1
            worker.scored += 1
            worker.failures, worker.free_at, worker.trouble = 0, 0.0, ""
            worker.answered_at = time.monotonic()
            for name, new in counts.items():
                if name in self.counts:
                    for key, value in new.items():
                        setattr(self.counts[name], key, getattr(self.counts[name], key) + value)
        if back:
            self.say(f"reward worker {worker.url}: answers again")

    def _failed(self, worker: Worker, trouble: str) -> None:
        with self._lock:
            now, first = time.monotonic(), worker.failures == 0
            worker.under_way -= 1
            worker.failed += 1
            worker.trouble = trouble
            if now >= worker.free_at:  # requests that fail together are one failure
                wait = FIRST_WAIT * 2 ** min(worker.failures, 10)
                worker.failures += 1
                worker.free_at = now + min(wait, LONGEST_WAIT) * random.uniform(0.5, 1.5)
        if first:
            self.say(f"reward worker {worker.url}: {trouble}; tried again, at most {self.patience:g} s long")

    def _busy(self, worker: Worker, wait: float, words: str) -> None:
        with self._lock:
            worker.under_way -= 1
            worker.busy += 1
            worker.trouble = f"HTTP 503: {words}"
            worker.free_at = time.monotonic() + min(max(wait, FIRST_WAIT), LONGEST_WAIT)

    def _out(self, worker: Worker, status: int, words: str) -> None:
        with self._lock:
            worker.under_way -= 1
            worker.failed += 1
            first, worker.out = not worker.out, f"{FOR_GOOD[status]} ({words})"
        if first:
            self.say(f"reward worker {worker.url}: {worker.out}")


# ---- what a run sees of it


@dataclass(frozen=True)
class ServedJudge:
    """A judge behind a worker."""

    name: str  # that workers serve it under
    form: Form  # see `judge.reward.FORMS`
    workers: RewardWorkers  # that are asked
    counts: Counts  # what the judge was asked for this run

    @property
    def needs_anchors(self) -> bool:
        """Whether photos without a preferred retouch have no value."""
        return self.form in NEED_ANCHORS

    def of_groups(self, candidates: Float[Tensor, "n 3 h w"], photos: Photos, photo_of: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """See `reward.GroupReward`; one group, or candidates that are alone, at a time."""
        return self.workers.score([self.name], candidates, photos)[self.name]


def stand_in(name: str, workers: RewardWorkers) -> RewardFunction | GroupReward:
    """What stands for a served reward in a `RewardSet`: a verifiable one itself, whose error maps local credit needs; else a proxy."""
    kind, _, argument = name.partition(":")
    if kind in REWARDS:
        return REWARDS[kind]
    if kind == "judge":
        return ServedJudge(name, split_argument(argument)[1], workers, workers.counts.setdefault(name, Counts()))

    def reward(candidates: Float[Tensor, "n 3 h w"], photos: Photos) -> Float[Tensor, " n"]:
        return workers.score([name], candidates, photos)[name]

    return reward


# ---- what is asked of workers before a run begins: whether they are there, speak its language, and serve what it maximises

EXAMPLE = "http://127.0.0.1:8600"
TO_CONNECT = 10.0  # Most seconds for a connection; one that hangs longer is no connection


def connect(
    urls: Sequence[str], names: Sequence[str], *, timeout: float, patience: float, say: Callable[[str], object] = lambda text: None
) -> RewardWorkers:
    """Ask every worker what it serves, and take those of the rewards that one serves there.

    A verifiable reward that none serves is scored in this process, and so is a judge behind a URL of its own (`judge:http://...`). One
    request takes up to `timeout` seconds; a worker that is still loading is waited for with `patience`, too.
    ConfigError: a URL is none or comes twice; nothing answers there, or no worker of this version; a learned reward is served by none; a
    worker serves none of them; two workers serve different rewards under one name."""
    import httpx

    urls = [url.rstrip("/") for url in urls]
    for url in urls:
        check_url(f"--reward-worker {url}", url, EXAMPLE)
        if urls.count(url) > 1:
            raise ConfigError(f"--reward-worker {url}: comes {urls.count(url)} times; name each worker once")
    token = read_key("--reward-worker", TOKEN_ENV, optional=True)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    limits = httpx.Timeout(timeout, connect=min(timeout, TO_CONNECT))
    workers: list[Worker] = []
    try:
        for url in urls:
            client = httpx.Client(timeout=limits, headers=headers, follow_redirects=False)
            workers.append(Worker(url, client, {}, 0))
            told = _health(client, url, patience, say)
            served = told["rewards"]
            workers[-1].serves = {name: served[name] for name in names if name in served}
            workers[-1].most = int(told["max_request_mib"] * 2**20)
            if not workers[-1].serves:
                near = nearest(names[0], served)
                raise ConfigError(f"--reward-worker {url}: serves {', '.join(served)} and none of the run's {', '.join(names)}{near}")
        for name in names:
            serving = [worker for worker in workers if name in worker.serves]
            if not serving and name not in REWARDS and not name.startswith(("judge:http://", "judge:https://")):
                cure = f"start one with serve-rewards --rewards {name}, or leave the workers out"
                raise ConfigError(f"reward {name!r}: no --reward-worker serves it; {cure}")
            if other := next((worker for worker in serving if worker.serves[name] != serving[0].serves[name]), None):
                first = f"that of {serving[0].url} is {serving[0].serves[name]}; serve the same weights"
                raise ConfigError(f"--reward-worker {other.url}: its {name} is {other.serves[name]}, {first}")
    except BaseException:
        for worker in workers:
            worker.client.close()
        raise
    return RewardWorkers(workers, patience=patience, say=say)


def _health(client: Any, url: str, patience: float, say: Callable[[str], object]) -> dict[str, Any]:
    """What a worker tells of itself, once it is ready."""
    import httpx

    until, said = time.monotonic() + patience, False
    other = ConfigError(f"--reward-worker {url}: is no serve-rewards; give its address, such as {EXAMPLE}")
    while True:
        try:
            told = client.get(f"{url}/health", timeout=min(client.timeout.read, 20.0)).json()
        except httpx.HTTPError as error:
            found = f"nothing answers there ({type(error).__name__})"
            raise ConfigError(f"--reward-worker {url}: {found}; start serve-rewards, or check host and port") from error
        except (ValueError, RecursionError) as error:
            raise other from error
        if not isinstance(told, dict) or told.get("service") != SERVICE:
            raise other
        if told.get("ready") is True:
            break
        if time.monotonic() > until:
            raise ConfigError(f"--reward-worker {url}: is still loading after {patience:g} s; look at its log")
        if not said:
            say(f"reward worker {url}: is loading")
            said = True
        time.sleep(0.5)
    if "rewards" not in told:
        raise ConfigError(f"--reward-worker {url}: wants a token; set {TOKEN_ENV} to the worker's")
    if (told.get("protocol"), told.get("version")) != (PROTOCOL, own_version()):
        raise ConfigError(
            f"--reward-worker {url}: is portraitkit {told.get('version')} (protocol {told.get('protocol')}), this is {own_version()} "
            f"(protocol {PROTOCOL}); rewards may differ: install one version on both sides"
        )
    if not isinstance(told["rewards"], dict) or not isinstance(told.get("max_request_mib"), int | float):
        raise other
    return told
