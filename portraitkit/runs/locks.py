"""One process at a time in a place: a marker file that names the holder's process and machine, and that shows life while it is held.

`filelock.SoftFileLease` does the work. On one machine the lock of a process that is gone is taken over at once; that of another machine
after `LOST` seconds without a sign of life. Machines need not agree on the time.
"""

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import SoftFileLease, Timeout

from portraitkit.errors import RunFolderError

BEAT = 5.0  # Seconds between two signs of life
LOST = 300.0
"""Seconds without a sign of life after which a process is taken for gone; network file systems show times of change a minute late."""
WRITING = ".writing"  # Name of the lock of a folder without shards


class Lock:
    """A lock that lives as long as its process, seen from other machines, too: the marker file `path`, whose folder must be there when
    it is taken. For the refusal: what it is a lock `of`, the `work` that the holder does with that ("is writing it"), and an
    `advice` at the end.
    """

    def __init__(self, path: Path, of: Path, work: str, advice: str = "wait for it") -> None:
        self.path, self.of, self.work, self.advice = path, of, work, advice
        self._lease = SoftFileLease(path, lease_duration=LOST, heartbeat_interval=BEAT, thread_local=False)

    def take(self) -> None:
        """Take the lock, also that of a process that is gone; RunFolderError: another process holds it. OSError: it cannot be written."""
        before, beat, waiting = self._holder(), last_change(self.path), False
        while True:
            with suppress(Timeout):
                self._lease.acquire(timeout=0.2, poll_interval=0.05)  # long enough to remove the marker of a process that is gone
                break
            now = self._holder()
            if (now and now[1] == socket.gethostname()) or last_change(self.path) != beat:
                pid, host = now or before or ("?", "?")
                raise RunFolderError(f"{self.of}: process {pid} on {host} {self.work}; {self.advice}")
            if not waiting:
                print(f"{self.of}: left by another machine; waiting up to {LOST:.0f} s for a sign of life", file=sys.stderr)
                waiting = True
            time.sleep(1)
        if before is not None:
            print(f"{self.of}: took over from process {before[0]} on {before[1]}, which is gone", file=sys.stderr)

    def release(self) -> None:
        """Let go; a lock that another process has taken over stays with it."""
        self._lease.release()

    def _holder(self) -> tuple[int, str] | None:
        """Process and machine that the marker names."""
        owner = self._lease.owner
        return (owner.pid, owner.hostname.partition("?")[0]) if owner else None  # behind the ? stands a container's name space


@contextmanager
def only_writer(folder: Path, work: str = WRITING) -> Iterator[None]:
    """Keep other processes out of a folder while the block runs; a folder in which nothing was made is gone afterwards. `work` is a hidden
    name of what is done in it, where several works may be done at once.
    RunFolderError: another process is at it, or the folder cannot be written.
    """
    new, lock = not folder.exists(), Lock(folder / work, folder, "holds it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.take()
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be written ({error.strerror}); check the folder and the disk") from error
    except RunFolderError as error:
        raise RunFolderError(f"{folder}: another process is writing it ({error})") from error
    try:
        yield
    finally:
        lock.release()
        if new:
            with suppress(OSError):  # not empty
                folder.rmdir()


def last_change(path: Path) -> float | None:
    """When a file was last written or touched, in seconds; None where it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None
