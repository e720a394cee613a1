"""Serve the annotation page until Ctrl-C."""

import errno
import socket
from pathlib import Path

import uvicorn

from portraitkit.errors import ConfigError
from preference_data.commands.annotate_config import LOOPBACK, AnnotateConfig
from preference_data.schema import Pair
from preference_data.web.app import Desk, make_app


def serve_page(config: AnnotateConfig, pairs: list[Pair]) -> int:
    """Serve the pairs; returns 0 after Ctrl-C.

    Raises:
        ConfigError: the address is taken or not this machine's.
    """
    listening = bind(config.host, config.port)
    port = listening.getsockname()[1]
    hosts = (*LOOPBACK[:2], "[::1]") if config.host in LOOPBACK else ("*",)
    app = make_app(Desk(Path(config.data), pairs), hosts=hosts)
    shown = f"[{config.host}]" if ":" in config.host else config.host
    print(f"{len(pairs)} pairs at http://{shown}:{port}/ (Ctrl-C ends; judgements are on disk as they come)", flush=True)
    if config.host not in LOOPBACK:
        print("note: everyone who reaches this address can see the photos and judge them", flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", server_header=False))
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        listening.close()
    return 0


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"--port {port}: in use on {host}; give another one, or 0 for a free one") from error
        raise ConfigError(f"--host {host}: cannot be listened on ({error.strerror or error}); use 127.0.0.1") from error
    return listening
