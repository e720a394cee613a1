"""What every HTTP server of the project shares: a socket bound before anything heavy is loaded, bounded bodies, strict headers."""

import ipaddress
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from portraitkit.errors import ConfigError

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
"""Of pages for people: nothing from elsewhere, no scripts in the page, no frames."""


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def warn_of_others(host: str, can: str) -> None:
    """Say on the standard error, where an address can be reached from other machines, what everyone there `can` do."""
    if not is_loopback(host):
        fix = "put a proxy with HTTPS in front, or stay with 127.0.0.1"
        print(f"warning: --host {host}: everyone who reaches this machine {can}, without encryption; {fix}", file=sys.stderr, flush=True)


def hosts_of(host: str, more: Sequence[str] = ()) -> tuple[str, ...]:
    """Values of the Host header that are answered: on loopback this machine's names and `more` (no DNS rebinding), elsewhere any."""
    return ("127.0.0.1", "localhost", "[::1]", *more) if is_loopback(host) else ("*",)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is known before a model is loaded; port 0 takes a free one.

    ConfigError: no such address, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"--host {host}: no such address ({error.strerror or error}); use 127.0.0.1") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise ConfigError(f"--port {port}: cannot listen on {host} ({error.strerror}); choose another --port or --host") from error
    return listener


def url_of(host: str, listener: socket.socket) -> str:
    """The address that a listening socket answers at, as a URL without a path."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"


def server_of(app: "Starlette", **limits: int) -> "uvicorn.Server":
    """A server that logs warnings only; on a signal it finishes what is under way. The limits are uvicorn's, in seconds."""
    import uvicorn

    options: dict[str, Any] = {"access_log": False, "log_level": "warning", "server_header": False, "lifespan": "on", **limits}
    return uvicorn.Server(uvicorn.Config(app, **options))


def page_app(routes: Sequence[Any], hosts: Sequence[str], handlers: Mapping[Any, Any]) -> "Starlette":
    """An application of pages for people: `PAGE_HEADERS` on every answer, and Host headers other than `hosts` refused."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    middleware = [Middleware(_PageHeaders), Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)]
    return Starlette(routes=list(routes), middleware=middleware, exception_handlers=dict(handlers))


class _PageHeaders:
    """Adds PAGE_HEADERS to every answer, and `cache-control: no-store` where the answer says nothing else."""

    def __init__(self, app: "ASGIApp") -> None:
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        async def send_with_headers(message: "Message") -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message.get("headers", [])}
                more = PAGE_HEADERS if b"cache-control" in present else PAGE_HEADERS | {"cache-control": "no-store"}
                message["headers"] = [*message.get("headers", []), *((name.encode(), value.encode()) for name, value in more.items())]
            await send(message)

        await self.app(scope, receive, send_with_headers)


async def bounded(chunks: AsyncIterator[bytes], most: int) -> AsyncIterator[bytes]:
    """The chunks of a request's body, at most `most` bytes; reading stops there. HTTPException: 413, it is larger."""
    from starlette.exceptions import HTTPException

    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > most:
            raise HTTPException(413, f"the request is larger than {most / 2**20:g} MiB", headers={"connection": "close"})
        yield chunk


async def read_body(chunks: AsyncIterator[bytes], most: int) -> bytes:
    """A request's body; see `bounded`."""
    return b"".join([chunk async for chunk in bounded(chunks, most)])
