"""`align-vlm` in several processes, see `several_processes`."""

import sys

import trl  # noqa: F401 (imported here, once)
from several_processes import Job, serve

from policies.vlm.main import align_vlm


def imitate(rank: int, job: Job) -> None:
    """Run the command; never returns."""
    sys.argv = ["align-vlm", *job["options"]]
    align_vlm()


if __name__ == "__main__":
    serve(imitate)
