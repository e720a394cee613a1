"""A part of a model that reads its input in another way for a while."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def other_forward(model: Any, known: Sequence[str], make: Callable[[Any, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """While active, the first part of a known class has another forward; without such a part, nothing changes.

    Args:
        model: wrapped or not.
        known: names of classes.
        make: (the part, its forward) -> the other one.
    """
    part: Any = next((module for module in model.modules() if type(module).__name__ in known), None)
    if part is None:
        yield
        return
    outer = vars(part).get("forward")  # of a context around this one
    part.forward = make(part, part.forward)
    try:
        yield
    finally:
        if outer is None:
            del part.forward
        else:
            part.forward = outer
