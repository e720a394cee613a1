"""What a run shows on the terminal, and hears from it: progress bars; Ctrl-C and SIGTERM that let the current step finish."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_bar(console: Console, *, elapsed: bool = False) -> Progress:
    """Description, bar, how many of how many, and the time left; nothing is shown where the console is no terminal."""
    times: list[ProgressColumn] = [TimeElapsedColumn()] if elapsed else []
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), *times, TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


@contextmanager
def counting(console: Console, what: str, total: int | None, *, stop: Callable[[], object] = lambda: None) -> Iterator[Callable[..., None]]:
    """A bar of its own; call what it gives with the number of things done, one if none is said. `stop` is asked each time."""
    with progress_bar(console, elapsed=True) as progress:
        bar = progress.add_task(what, total=total)

        def advance(count: int = 1) -> None:
            progress.advance(bar, count)
            stop()

        yield advance


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
