"""The web application of `serve-judge`. One thread runs the model; requests that arrive together are answered as one batch."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from portraitkit.errors import DataError, ImageError
from portraitkit.serving import read_body
from reward_models.judge.backend import Backend, Said
from reward_models.judge.judge import Judge
from reward_models.workers.judge_requests import ChatRequest, completion_of, read_request
from reward_models.workers.serve_judge_config import ServeJudgeConfig


class Batcher:
    """Gathers requests for a few milliseconds and asks the model about them together.

    Args:
        backend: that answers; it is used by one thread only.
        wait: seconds that the first request of a batch waits for others.
        most: requests in a batch.
    """

    def __init__(self, backend: Backend, *, wait: float, most: int) -> None:
        self.backend, self.wait, self.most = backend, wait, most
        self.sizes: list[int] = []
        self.waiting = 0
        self._queue: asyncio.Queue[tuple[ChatRequest, asyncio.Future[Said]]] = asyncio.Queue()

    async def answer(self, request: ChatRequest) -> Said:
        """The model's answer to one request."""
        future: asyncio.Future[Said] = asyncio.get_running_loop().create_future()
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
                batch = [one for one in batch if not one[1].done()]  # whoever has gone needs no answer
                for part in _alike(batch):
                    await self._ask(part, thread)

    async def _ask(self, part: Sequence[tuple[ChatRequest, "asyncio.Future[Said]"]], thread: ThreadPoolExecutor) -> None:
        first = part[0][0]
        self.sizes.append(len(part))
        work = asyncio.get_running_loop().run_in_executor(
            thread, self.backend.ask, first.prompt, [request.pictures for request, _ in part], first.max_tokens
        )
        try:
            said: Sequence[Said | BaseException] = await work
        except BaseException as error:  # a bug, or the server stops: whoever waits must learn of it
            for _, future in part:
                if not future.done():
                    future.set_exception(error if not isinstance(error, asyncio.CancelledError) else RuntimeError("the server stops"))
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        for (_, future), one in zip(part, said, strict=True):
            if not future.done():
                future.set_result(one)


def _alike(batch: Sequence[tuple[ChatRequest, Any]]) -> list[list[tuple[ChatRequest, Any]]]:
    """The batch in parts that one call of the backend can answer: one prompt, as many pictures, one limit of tokens."""
    parts: dict[tuple[str, int, int], list[tuple[ChatRequest, Any]]] = {}
    for one in batch:
        parts.setdefault((one[0].prompt, len(one[0].pictures), one[0].max_tokens), []).append(one)
    return list(parts.values())


def build_app(judge: Judge, config: ServeJudgeConfig, *, allowed_hosts: Sequence[str] = ("*",)) -> Starlette:
    """The application.

    Args:
        judge: whose backend answers; its settings are told under /v1/models.
        config: limits.
        allowed_hosts: values of the Host header that are answered.
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

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        words = {"message": error.detail, "type": "invalid_request_error" if error.status_code < 500 else "server_error"}
        return JSONResponse({"error": words}, status_code=error.status_code, headers=error.headers)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    routes = [Route("/v1/chat/completions", chat, methods=["POST"]), Route("/v1/models", models), Route("/health", health)]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False)]
    app = Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: refuse}, lifespan=lifespan)
    app.state.batcher = batcher
    return app
