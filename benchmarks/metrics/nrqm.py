"""NRQM (Ma et al., 2017): a no-reference measure for super-resolution, three random forests; slow."""

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

from benchmarks.metric import Metric, Range, Score
from benchmarks.nets.pyiqa_nets import LICENCE, REVISION, column, empty_net, iqa_file
from portraitkit.errors import WeightsError

FILE = "NRQM_model.mat"


def open_nrqm(files: Mapping[str, Path]) -> Score:
    """The scoring function.

    Raises:
        WeightsError: the file is not NRQM's.
    """
    from scipy.io.matlab import MatReadError

    damaged = (MatReadError, zlib.error, struct.error, OSError, KeyError, IndexError, ValueError, TypeError, NotImplementedError)
    try:
        return column(empty_net("nrqm", pretrained_model_path=str(files[FILE])))
    except damaged as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{files[FILE]}: is not NRQM's model ({reason}); download it again") from error


METRIC = Metric(
    name="nrqm",
    title="quality of super-resolution",
    direction="higher",
    range=Range(0, 10),
    reference="none",
    licence=LICENCE,
    open=open_nrqm,
    weights=(iqa_file(FILE, 54),),
    revision=REVISION,
    smallest=64,
)
