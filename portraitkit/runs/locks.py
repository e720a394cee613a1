"""A file that says which process works in a place: one holds it, touches it while it works, and is followed by another when it is gone."""

import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

from portraitkit.errors import RunFolderError

BEAT = 5.0
"""Seconds between two signs of life."""
LOST = 300.0
"""Seconds without a sign of life after which a process is taken for gone; network file systems show times of change a minute late."""


class Lock:
    """A lock that lives as long as its process, seen from other machines, too.

    On the same machine the holder is asked for by its number. On another one nobody can: there it counts while the file's time of change
    advances, by the file system's own clock, so that machines need not agree on the time.

    Args:
        path: the file; its folder must be there when the lock is taken.
        of: what it protects, for messages.
        work: what the holder does with that, as in "is writing it".
        advice: how the user goes on, the end of the refusal.
    """

    def __init__(self, path: Path, of: Path, work: str, advice: str = "wait for it") -> None:
        self.path, self.of, self.work, self.advice = path, of, work, advice
        self._text = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        self._stop, self._beats = threading.Event(), threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def take(self) -> None:
        """Take the lock, also that of a process that is gone.

        Raises:
            RunFolderError: another process holds it.
            OSError: it cannot be written.
        """
        while not create(self.path, self._text):
            pid, host = holder = self._holder()
            if is_running(pid) if host == socket.gethostname() else self._shows_life():
                raise RunFolderError(f"{self.of}: process {pid} on {host} {self.work}; {self.advice}")
            if self._holder() == holder:  # else another process was faster
                print(f"{self.of}: took over from process {pid} on {host}, which is gone", file=sys.stderr)
                self.path.unlink(missing_ok=True)
        self._beats.start()

    def release(self) -> None:
        """Let go; a lock that another process has taken over stays with it."""
        self._stop.set()
        if self._beats.is_alive():
            self._beats.join()
        if self._is_own():
            self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT) and self._is_own():
            try:
                os.utime(self.path)
            except OSError:  # the folder was cleared
                return

    def _is_own(self) -> bool:
        try:
            return self.path.read_text(encoding="utf-8") == self._text
        except OSError:
            return False

    def _holder(self) -> tuple[int, str]:
        """Process and host; (0, this host), which does not run, where the file does not say or is not there any more."""
        try:
            holder = json.loads(self.path.read_text(encoding="utf-8"))
            return int(holder["pid"]), str(holder["host"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0, socket.gethostname()

    def _shows_life(self) -> bool:
        """Whether the file's time of change advances before its process counts as gone; one that is old enough needs no waiting."""
        before, start = last_change(self.path), time.monotonic()
        if before is None:
            return False
        patience = min(LOST, LOST - (self._now() - before))
        if patience > 0:
            print(f"{self.of}: left by another machine; waiting up to {patience:.0f} s for a sign of life", file=sys.stderr)
        while time.monotonic() - start < patience:
            now = last_change(self.path)
            if now != before:
                return now is not None
            time.sleep(1)
        return False

    def _now(self) -> float:
        """The time by the clock of the file system."""
        probe = _own(self.path)
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()


def create(path: Path, text: str) -> bool:
    """Create a file with its text in one step; False where it is there already, whoever was first.

    Raises:
        OSError: it cannot be written.
    """
    mine = _own(path)
    mine.write_text(text, encoding="utf-8")
    try:
        os.link(mine, path)
    except FileExistsError:
        return False
    finally:
        mine.unlink()
    return True


def last_change(path: Path) -> float | None:
    """When a file was last written or touched, in seconds; None where it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def is_running(pid: int) -> bool:
    """Whether a process of this machine runs."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _own(path: Path) -> Path:
    """A name beside `path` that no other process takes."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}")
