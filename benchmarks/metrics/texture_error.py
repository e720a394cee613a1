"""Texture fidelity: relative RMS change of the skin's fine detail away from blemishes, 0 where every pore is kept."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from benchmarks.aligned_faces import MIN_FACE, NO_FACE, on_faces
from benchmarks.metric import Metric, Range, Score
from reward_models.verifiable import texture_error


def open_texture_error(files: Mapping[str, Path]) -> Score:
    """The scoring function."""
    return partial(on_faces, texture_error)


METRIC = Metric(
    name="texture_error",
    title="texture lost or laid on",
    direction="lower",
    range=Range(0, 2),
    reference="source",
    licence="own code",
    open=open_texture_error,
    smallest=MIN_FACE,
    missing=NO_FACE,
)
