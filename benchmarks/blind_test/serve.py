"""`blind-test serve`: one process, one study, loopback unless told otherwise."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from rich.console import Console

from benchmarks.blind_test.config import ServeConfig
from benchmarks.blind_test.server import build_app
from benchmarks.blind_test.store import Store
from benchmarks.blind_test.study import VOTES, read_study
from portraitkit.errors import RunFolderError
from portraitkit.serving import listen

LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")

KEEP_ALIVE = 300
"""Seconds that a connection stays open without a request: longer than people look at a pair, so that no answer meets a closing one."""


def serve_study(config: ServeConfig) -> int:
    """Serve until interrupted.

    Returns:
        0 after a clean stop.

    Raises:
        RunFolderError: no study, or another process serves it.
        ConfigError: the address cannot be listened on.
    """
    console = Console(stderr=True, highlight=False)
    study = read_study(config.folder)
    with (
        locked(config.folder),
        contextlib.closing(Store(config.folder / VOTES, study)) as store,
        listen(config.host, config.port) as listener,
    ):
        port = listener.getsockname()[1]
        shown = f"[{config.host}]" if ":" in config.host else config.host
        hosts = (*LOCAL_HOSTS, *config.allowed_hosts) if config.is_loopback else ("*",)
        app = build_app(study, store, allowed_hosts=hosts, max_raters=config.max_raters)
        console.print(f"{config.folder}: {store.count_raters()} raters so far", markup=False, soft_wrap=True)
        if not config.is_loopback:
            console.print(
                f"[bold red]warning:[/] --host {config.host}: everyone who reaches this machine can see the pictures and vote, without "
                "encryption. Put a proxy with HTTPS in front, or stay with 127.0.0.1."
            )
        console.print(f"open http://{shown}:{port}/ ; Ctrl-C stops, nothing is lost", markup=False, soft_wrap=True)
        settings = uvicorn.Config(
            app,
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=3,
            timeout_keep_alive=KEEP_ALIVE,
            lifespan="off",
        )
        uvicorn.Server(settings).run(sockets=[listener])
    return 0


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second server away from the folder; the lock goes with the process, however that ends.

    Raises:
        RunFolderError: another process holds it, or the folder cannot be written.
    """
    path = folder / ".serve.lock"
    try:
        with path.open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunFolderError(f"{folder}: another process serves this study; stop it first") from error
            yield
    except PermissionError as error:
        raise RunFolderError(f"{folder}: cannot be written ({error.strerror}); votes need a folder of your own") from error
