"""The progress bar of commands that work through a known number of things."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_bar(console: Console, *, elapsed: bool = False) -> Progress:
    """Description, bar, how many of how many, and the time left; nothing is shown where the console is no terminal."""
    times: list[ProgressColumn] = [TimeElapsedColumn()] if elapsed else []
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), *times, TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)
