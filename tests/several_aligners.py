"""`align-vlm` in several processes, see `several_processes`."""

import sys
from contextlib import redirect_stdout

import trl  # noqa: F401 (imported here, once, as DeepSpeed is)
from several_processes import Job, serve

from policies.vlm.main import align_vlm

with redirect_stdout(sys.stderr):  # what it logs is no answer
    import deepspeed.ops

# Otherwise kernels for shared memory are compiled first, for 44 seconds, and for each checkout anew; gloo reduces as well.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def imitate(rank: int, job: Job) -> None:
    """Run the command; never returns."""
    sys.argv = ["align-vlm", *job["options"]]
    align_vlm()


if __name__ == "__main__":
    serve(imitate)
