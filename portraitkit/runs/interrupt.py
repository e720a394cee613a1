"""Ctrl-C and SIGTERM that let the current step finish: the first signal asks, a second one ends the process at once."""

import os
import signal
from types import FrameType, TracebackType
from typing import Self


class Interruptible:
    """While active, SIGINT and SIGTERM only set `requested`; a second signal exits at once with 130 or 143."""

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._before: dict[int, object] = {}
        self._signalled = False

    @property
    def exit_code(self) -> int:
        """128 + signal: 130 for Ctrl-C, 143 for SIGTERM; 0 if none came."""
        return 128 + self.requested if self.requested is not None else 0

    def learn(self, number: int) -> None:
        """Another process of the run was signalled: this one stops, too. Its own first signal, which may still come, asks as ever."""
        self.requested = self.requested or signal.Signals(number)

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signalled:
            os._exit(128 + number)
        self._signalled = True
        self.requested = signal.Signals(number)
