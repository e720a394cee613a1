"""The progress bar: drawn on terminals only."""

import io

import pytest
from rich.console import Console

from portraitkit.runs.terminal import progress_bar


@pytest.mark.parametrize(("terminal", "shown"), [(True, True), (False, False)])
def test_it_is_drawn_on_terminals_only(terminal, shown):
    out = io.StringIO()
    with progress_bar(Console(file=out, force_terminal=terminal, width=120), elapsed=True) as bar:
        task = bar.add_task("reading [photos]", total=4)
        bar.update(task, advance=3)
    assert all((words in out.getvalue()) == shown for words in ("reading [photos]", "3/4", "0:00:0"))
