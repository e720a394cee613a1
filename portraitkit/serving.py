"""What every HTTP server of the project shares: a socket bound before anything heavy is loaded, and bodies of bounded size."""

import socket
from collections.abc import AsyncIterator

from portraitkit.errors import ConfigError

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    return host in LOOPBACK or host.startswith("127.")


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is known before a model is loaded.

    Args:
        host: name or address.
        port: 0 takes a free one.

    Raises:
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


async def read_body(chunks: AsyncIterator[bytes], most: int) -> bytes:
    """A request's body, at most `most` bytes; reading stops there.

    Raises:
        HTTPException: 413, it is larger.
    """
    from starlette.exceptions import HTTPException

    data = bytearray()
    async for chunk in chunks:
        data += chunk
        if len(data) > most:
            raise HTTPException(413, f"the request is larger than {most / 2**20:g} MiB", headers={"connection": "close"})
    return bytes(data)
