"""PSNR against the reference, over RGB, in dB; as pyiqa's `psnr`, 80 dB for equal pictures."""

from jaxtyping import Float
from torch import Tensor

from benchmarks.metric import Metric, Pictures, Range


def psnr(pictures: Pictures) -> Float[Tensor, " n"]:
    """-10 log10 of the mean squared error, which is 1e-8 at least."""
    assert pictures.reference is not None
    error = (pictures.pixels - pictures.reference).double().square().mean((1, 2, 3))
    return -10 * (error + 1e-8).log10()


METRIC = Metric(
    name="psnr",
    title="fidelity to the reference, dB",
    direction="higher",
    range=Range(0, 80),
    reference="full",
    licence="own code",
    open=lambda files: psnr,
)
