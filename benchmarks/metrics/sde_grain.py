"""Grain that sampling left on the skin, in percent of full scale: the early sign of a policy that collapses to noise."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from benchmarks.aligned_faces import MIN_FACE, NO_FACE, on_faces
from benchmarks.metric import Metric, Range, Score
from reward_models.grain import residual_grain


def open_sde_grain(files: Mapping[str, Path]) -> Score:
    """The scoring function."""
    return partial(on_faces, residual_grain)


METRIC = Metric(
    name="sde_grain",
    title="grain laid on the skin",
    direction="lower",
    range=Range(0, 10),
    reference="source",
    licence="own code",
    open=open_sde_grain,
    smallest=MIN_FACE,
    missing=NO_FACE,
)
