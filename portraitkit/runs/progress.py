"""The progress bar of commands that work through a known number of things."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
