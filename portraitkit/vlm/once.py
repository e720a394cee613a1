"""What the answers of a batch have in common is read once: pictures by the tower, prompts by the language model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from portraitkit.vlm.prompt import prompt_once
from portraitkit.vlm.tower import tower_once


@contextmanager
def read_once(model: Any) -> Iterator[None]:
    """While active, `tower_once` and `prompt_once`."""
    with tower_once(model), prompt_once(model):
        yield
