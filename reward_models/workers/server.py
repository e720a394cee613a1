"""The web application of `serve-rewards`. One thread scores, in the order in which requests came; those beyond the queue come again."""

import asyncio
import hmac
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from portraitkit.errors import DataError, UserError
from portraitkit.serving import read_body
from reward_models.judge.reward import CountedJudge
from reward_models.photos import Photos
from reward_models.reward_set import RewardSet
from reward_models.workers.fingerprints import fingerprint
from reward_models.workers.serve_rewards_config import ServeRewardsConfig
from reward_models.workers.wire import PROTOCOL, SERVICE, Asked, own_version, pack_answer, unpack

LONGEST_WAIT = 60


class Desk:
    """Loads the rewards and scores one request after the other, in one thread of its own.

    Args:
        load: builds the rewards.
        device: where pictures are scored.
        on_failure: called when they cannot be loaded.
    """

    def __init__(self, load: Callable[[], RewardSet], device: str = "cpu", *, on_failure: Callable[[], object] = lambda: None) -> None:
        self.load, self.device, self.on_failure = load, device, on_failure
        self.rewards: RewardSet | None = None
        self.prints: dict[str, str] = {}
        self.failure: UserError | None = None
        self.waiting = self.scored = self.refused = self.left = 0
        self.seconds = 0.0
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._turn = asyncio.Lock()

    async def open(self) -> None:
        """Load the rewards; a mistake of the user's is kept in `failure`."""
        try:
            self.rewards, self.prints = await asyncio.get_running_loop().run_in_executor(self._thread, self._load)
        except UserError as error:
            self.failure = error
            self.on_failure()

    def close(self) -> None:
        """End the thread after what it is doing."""
        self._thread.shutdown(wait=True)

    async def score(self, body: bytes, gone: Callable[[], Any]) -> bytes | None:
        """The answer to a request in its turn; None for one whose asker has gone by then.

        Raises:
            DataError: the request is none.
            HTTPException: 409, it expects another reward than the one served under that name.
        """
        async with self._turn:
            if await gone():
                self.left += 1
                return None
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._score, body)

    def retry_after(self) -> int:
        """Seconds after which half of the queue should be gone."""
        each = self.seconds / self.scored if self.scored else 1.0
        return max(1, min(LONGEST_WAIT, math.ceil(each * self.waiting / 2)))

    def _load(self) -> tuple[RewardSet, dict[str, str]]:
        rewards = self.load()
        return rewards, {name: fingerprint(name) for name in rewards.functions}

    def _score(self, body: bytes) -> bytes:
        assert self.rewards is not None
        started = time.monotonic()
        asked = unpack(body)
        self._check(asked)
        judges = {name: one for name in asked.rewards if isinstance(one := self.rewards.functions[name], CountedJudge)}
        before = {name: judge.counts.copy() for name, judge in judges.items()}
        photos = Photos(**{one.name: getattr(asked.photos, one.name).to(self.device) for one in fields(Photos)})
        parts = self.rewards.score_unit(list(asked.rewards), asked.candidates.to(self.device), photos)
        counts = {name: judge.counts.since(before[name]) for name, judge in judges.items()}
        seconds = time.monotonic() - started
        self.scored, self.seconds = self.scored + 1, self.seconds + seconds
        return pack_answer({name: part.cpu() for name, part in parts.items()}, counts, seconds)

    def _check(self, asked: Asked) -> None:
        for name, expected in asked.rewards.items():
            found = self.prints.get(name)
            if found != expected:
                told = "is not served here" if found is None else f"is {found} here, not {expected}"
                raise HTTPException(409, f"reward {name!r} {told}")


def build_app(desk: Desk, config: ServeRewardsConfig, *, token: str = "", allowed_hosts: Sequence[str] = ("*",)) -> Starlette:
    """The application.

    Args:
        desk: that scores.
        config: limits.
        token: that requests must bring as `Authorization: Bearer TOKEN`; none if empty. Without it /health tells `ready` alone.
        allowed_hosts: values of the Host header that are answered.
    """
    most = int(config.max_request_mib * 2**20)

    def trusted(request: Request) -> bool:
        given = request.headers.get("authorization", "").encode()
        return not token or hmac.compare_digest(given, f"Bearer {token}".encode())

    async def score(request: Request) -> Response:
        if not trusted(request):
            raise HTTPException(401, "the token is missing or another one")
        if desk.rewards is None or desk.waiting >= config.max_waiting:
            desk.refused += 1
            after = 1 if desk.rewards is None else desk.retry_after()
            async for _ in request.stream():  # read and dropped: a client that is still sending would lose the answer
                pass
            words = "the rewards are being loaded" if desk.rewards is None else f"{desk.waiting} requests are waiting"
            raise HTTPException(503, words, headers={"retry-after": str(after)})
        desk.waiting += 1
        try:
            body = await read_body(request.stream(), most)
            answer = await desk.score(body, request.is_disconnected)
        except DataError as error:
            raise HTTPException(400, str(error)) from error
        finally:
            desk.waiting -= 1
        return Response(answer, media_type="application/json") if answer is not None else Response(status_code=499)

    async def health(request: Request) -> Response:
        ready = desk.rewards is not None
        told: dict[str, object] = {"service": SERVICE, "ready": ready}
        if trusted(request):
            told |= {
                "protocol": PROTOCOL,
                "version": own_version(),
                "torch": torch.__version__,
                "device": desk.device,
                "rewards": desk.prints,
                "waiting": desk.waiting,
                "max_waiting": config.max_waiting,
                "max_request_mib": config.max_request_mib,
                "scored": desk.scored,
                "refused": desk.refused,
                "left": desk.left,
                "seconds": round(desk.seconds, 3),
            }
        return JSONResponse(told, status_code=200 if ready else 503)

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, UserError):
            return JSONResponse({"error": str(error)}, status_code=500)
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        loading = asyncio.create_task(desk.open())
        yield
        await loading
        desk.close()

    routes = [Route("/v1/score", score, methods=["POST"]), Route("/health", health)]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False)]
    handlers: dict[Any, Any] = {HTTPException: refuse, UserError: refuse}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)
