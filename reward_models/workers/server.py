"""The web applications of `serve-judge` and `serve-rewards`.

A judge's requests that arrive together are answered as one batch. Rewards are scored one request after the other, in the order in which
requests came. Both keep at most `max_waiting` requests; further ones are told to come again (503).
"""

import asyncio
import hmac
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import asdict
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from portraitkit.endpoint import Reply
from portraitkit.errors import DataError, ImageError, UserError
from portraitkit.serving import hosts_of, read_body
from reward_models.judge.backends import Backend
from reward_models.judge.judge import Judge
from reward_models.reward import GroupReward
from reward_models.reward_set import RewardSet
from reward_models.workers.chat import ChatRequest, completion_of, read_request
from reward_models.workers.options import ServeJudgeConfig, ServerConfig, ServeRewardsConfig
from reward_models.workers.wire import PROTOCOL, SERVICE, fingerprint, own_version, pack_answer, unpack

LONGEST_WAIT = 60  # Most seconds after which a refused request is asked to come again
Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def _app(routes: Sequence[Route], say: Callable[[int, str], object], lifespan: Lifespan, config: ServerConfig) -> Starlette:
    """An application that answers the allowed hosts alone and says errors by `say(status, words)` as JSON."""

    async def refuse(request: Request, error: Exception) -> Response:
        known = error if isinstance(error, HTTPException) else HTTPException(500, str(error))
        return JSONResponse({"error": say(known.status_code, known.detail)}, status_code=known.status_code, headers=known.headers)

    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts_of(config.host, config.allowed_hosts)), www_redirect=False)]
    handlers: dict[Any, Any] = {HTTPException: refuse, UserError: refuse}
    return Starlette(routes=list(routes), middleware=middleware, exception_handlers=handlers, lifespan=lifespan)


# ---- a judge


class Batcher:
    """Gathers requests and asks the backend, which is used by one thread only, about at most `most` of them together; the first one of a
    batch waits for others `wait` seconds.
    """

    def __init__(self, backend: Backend, *, wait: float, most: int) -> None:
        self.backend, self.wait, self.most = backend, wait, most
        self.sizes: list[int] = []
        self.waiting = 0
        self._queue: asyncio.Queue[tuple[ChatRequest, asyncio.Future[Reply]]] = asyncio.Queue()

    async def answer(self, request: ChatRequest) -> Reply:
        """The model's answer to one request."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.waiting += 1
        try:
            await self._queue.put((request, future))
            return await future
        finally:
            self.waiting -= 1

    async def run(self) -> None:
        """Answer until cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(max_workers=1) as thread:
            while True:
                batch = [await self._queue.get()]
                until = loop.time() + self.wait
                while len(batch) < self.most and (left := until - loop.time()) > 0:
                    with suppress(TimeoutError):
                        batch.append(await asyncio.wait_for(self._queue.get(), left))
                calls: dict[tuple[str, int, int], list[Any]] = {}  # one call of the backend answers one prompt with as many pictures
                for one in batch:
                    if not one[1].done():  # whoever has gone needs no answer
                        calls.setdefault((one[0].prompt, len(one[0].pictures), one[0].max_tokens), []).append(one)
                for alike in calls.values():
                    await self._ask(alike, thread)

    async def _ask(self, batch: Sequence[tuple[ChatRequest, "asyncio.Future[Reply]"]], thread: ThreadPoolExecutor) -> None:
        first = batch[0][0]
        self.sizes.append(len(batch))
        work = asyncio.get_running_loop().run_in_executor(
            thread, self.backend.ask, first.prompt, [request.pictures for request, _ in batch], first.max_tokens
        )
        try:
            said: Sequence[Reply] = await work
        except BaseException as error:  # a bug, or the server stops: whoever waits must be told
            stops = isinstance(error, asyncio.CancelledError)
            for _, future in batch:
                if not future.done():
                    future.set_exception(RuntimeError("the server stops") if stops else error)
            if stops:
                raise
            return
        for (_, future), one in zip(batch, said, strict=True):
            if not future.done():
                future.set_result(one)


def judge_app(judge: Judge, config: ServeJudgeConfig) -> Starlette:
    """The application of `serve-judge`: the judge's backend answers within the limits of the configuration; its settings are told under
    /v1/models.
    """
    batcher = Batcher(judge.backend, wait=config.wait_ms / 1000, most=config.batch_size)
    name = judge.backend.name

    async def chat(request: Request) -> Response:
        body = await read_body(request.stream(), int(config.max_request_mib * 2**20))
        try:
            read = read_request(body, model=name, max_pictures=config.max_pictures, max_tokens=config.max_tokens)
        except (DataError, ImageError) as error:
            raise HTTPException(400, str(error)) from error
        if batcher.waiting >= config.max_waiting:
            raise HTTPException(503, f"{batcher.waiting} requests are waiting", headers={"retry-after": "2"})
        return JSONResponse(completion_of(await batcher.answer(read), read, name))

    async def models(request: Request) -> Response:
        card = {"id": name, "object": "model", "created": 0, "owned_by": "local", "judge": asdict(judge.settings)}
        return JSONResponse({"object": "list", "data": [card]})

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "waiting": batcher.waiting, "batches": len(batcher.sizes), "answered": sum(batcher.sizes)})

    def say(status: int, words: str) -> Mapping[str, str]:
        return {"message": words, "type": "invalid_request_error" if status < 500 else "server_error"}

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    routes = [Route("/v1/chat/completions", chat, methods=["POST"]), Route("/v1/models", models), Route("/health", health)]
    return _app(routes, say, lifespan, config)


# ---- rewards


class Desk:
    """Loads the rewards (calls `on_failure` where it cannot) and scores one request after the other, in one thread of its own."""

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
        DataError: the request is none.
        HTTPException: 409, it expects another reward than the one served under that name."""
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
        for name, expected in asked.rewards.items():
            if (served := self.prints.get(name)) != expected:
                difference = "is not served here" if served is None else f"is {served} here, not {expected}"
                raise HTTPException(409, f"reward {name!r} {difference}")
        judges = {name: one for name in asked.rewards if isinstance(one := self.rewards.functions[name], GroupReward)}
        before = {name: judge.counts.copy() for name, judge in judges.items()}
        photos, candidates = asked.photos.each(lambda part: part.to(self.device)), asked.candidates.to(self.device)
        parts = self.rewards.score_unit(list(asked.rewards), candidates, photos)
        counts = {name: judge.counts.since(before[name]) for name, judge in judges.items()}
        seconds = time.monotonic() - started
        self.scored, self.seconds = self.scored + 1, self.seconds + seconds
        return pack_answer({name: part.cpu() for name, part in parts.items()}, counts, seconds)  # to be sent


def rewards_app(desk: Desk, config: ServeRewardsConfig, *, token: str = "") -> Starlette:
    """The application of `serve-rewards`. With a token, requests must bring it as `Authorization: Bearer TOKEN`; without, /health tells
    `ready` alone."""
    most = int(config.max_request_mib * 2**20)

    def trusted(request: Request) -> bool:
        sent = request.headers.get("authorization", "").encode()
        return not token or hmac.compare_digest(sent, f"Bearer {token}".encode())

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
        state: dict[str, object] = {"service": SERVICE, "ready": ready}
        if trusted(request):
            state |= {"protocol": PROTOCOL, "version": own_version(), "torch": torch.__version__, "device": desk.device}
            state |= {"rewards": desk.prints, "max_waiting": config.max_waiting, "max_request_mib": config.max_request_mib}
            state |= {name: getattr(desk, name) for name in ("waiting", "scored", "refused", "left")}
            state |= {"seconds": round(desk.seconds, 3)}
        return JSONResponse(state, status_code=200 if ready else 503)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        loading = asyncio.create_task(desk.open())
        yield
        await loading
        desk.close()

    routes = [Route("/v1/score", score, methods=["POST"]), Route("/health", health)]
    return _app(routes, lambda status, words: words, lifespan, config)
