"""How long tests wait for what must come: enough for a slow, busy machine. A test that passes gets no slower by it."""

import time
from collections.abc import Callable

LONGEST = 120.0
"""Seconds."""


def wait_until(condition: Callable[[], object], what: str, pause: Callable[[float], object] = time.sleep) -> None:
    """Ask until `condition` is true; `pause` takes seconds.

    Raises:
        AssertionError: it was not within `LONGEST` seconds; the message holds `what`.
    """
    end = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < end, f"not within {LONGEST:g} s: {what}"
        pause(0.02)
