"""What is asked of reward workers before a run begins: whether they are there, speak its language, and serve what it maximises."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from portraitkit.endpoint import check_url, read_key
from portraitkit.errors import ConfigError, nearest
from reward_models.reward_set import check_names
from reward_models.verifiable import REWARDS
from reward_models.workers.client import RewardWorkers, Worker
from reward_models.workers.wire import PROTOCOL, SERVICE, TOKEN_ENV, own_version

EXAMPLE = "http://127.0.0.1:8600"
TO_CONNECT = 10.0  # Most seconds for a connection; one that hangs longer is no connection


def connect(
    urls: Sequence[str], names: Sequence[str], *, timeout: float, patience: float, say: Callable[[str], object] = lambda text: None
) -> RewardWorkers:
    """Ask every worker what it serves, and take those of the rewards that one serves there.

    A verifiable reward that none serves is scored in this process, and so is a judge behind a URL of its own (`judge:http://...`).

    Args:
        urls: one a worker.
        names: the run's rewards.
        timeout: seconds for one request.
        patience: seconds to wait for a worker that is still loading, and see `RewardWorkers`.
        say: told of workers that load, fail and come back.

    Raises:
        ConfigError: a URL is none or comes twice; nothing answers there, or no worker of this version; a learned reward is served by
            none; a worker serves none of them; two workers serve different rewards under one name.
    """
    import httpx

    check_names(names)
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
        _check_together(workers, names)
    except BaseException:
        for worker in workers:
            worker.client.close()
        raise
    return RewardWorkers(workers, patience=patience, say=say)


def _health(client: Any, url: str, patience: float, say: Callable[[str], object]) -> dict[str, Any]:
    """What a worker tells of itself, once it is ready."""
    import httpx

    until, said = time.monotonic() + patience, False
    while True:
        try:
            response = client.get(f"{url}/health", timeout=min(client.timeout.read, 20.0))
            told = response.json()
        except httpx.HTTPError as error:
            raise ConfigError(
                f"--reward-worker {url}: nothing answers there ({type(error).__name__}); start serve-rewards, or check host and port"
            ) from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"--reward-worker {url}: is no serve-rewards; give its address, such as {EXAMPLE}") from error
        if not isinstance(told, dict) or told.get("service") != SERVICE:
            raise ConfigError(f"--reward-worker {url}: is no serve-rewards; give its address, such as {EXAMPLE}")
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
        raise ConfigError(f"--reward-worker {url}: is no serve-rewards; give its address, such as {EXAMPLE}")
    return told


def _check_together(workers: Sequence[Worker], names: Sequence[str]) -> None:
    for name in names:
        serving = [worker for worker in workers if name in worker.serves]
        if not serving and name not in REWARDS and not name.startswith(("judge:http://", "judge:https://")):
            raise ConfigError(
                f"reward {name!r}: no --reward-worker serves it; start one with serve-rewards --rewards {name}, or leave the workers out"
            )
        for worker in serving[1:]:
            if worker.serves[name] != serving[0].serves[name]:
                raise ConfigError(
                    f"--reward-worker {worker.url}: its {name} is {worker.serves[name]}, that of {serving[0].url} is "
                    f"{serving[0].serves[name]}; serve the same weights"
                )
