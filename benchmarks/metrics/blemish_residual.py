"""Share of the squared blemish error that is left: 0 all gone, 1 as in the photo; against the reference, or the skin around each spot."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from benchmarks.aligned_faces import MIN_FACE, NO_FACE, on_faces
from benchmarks.metric import Metric, Range, Score
from reward_models.verifiable import blemish_residual


def open_blemish_residual(files: Mapping[str, Path]) -> Score:
    """The scoring function."""
    return partial(on_faces, blemish_residual)


METRIC = Metric(
    name="blemish_residual",
    title="blemishes left",
    direction="lower",
    range=Range(0, 2),
    reference="source",
    licence="own code",
    open=open_blemish_residual,
    smallest=MIN_FACE,
    missing=NO_FACE,
)
