"""`align-vlm` in several processes, see `several_processes`."""

import sys
from contextlib import redirect_stdout

from several_processes import Job, serve

from policies.vlm.main import align_vlm

with redirect_stdout(sys.stderr):  # what they log is no answer; imported here, once, and not by every process
    import deepspeed.ops
    from peft import LoraConfig  # noqa: F401
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor  # noqa: F401
    from trl import GRPOTrainer, SFTTrainer  # noqa: F401

    from policies.vlm.align import align  # noqa: F401

# Otherwise kernels for shared memory are compiled first, for 44 seconds, and for each checkout anew; gloo reduces as well.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def imitate(rank: int, job: Job) -> None:
    """Run the command; never returns."""
    sys.argv = ["align-vlm", *job["options"]]
    align_vlm()


if __name__ == "__main__":
    serve(imitate)
