"""The processes that `torchrun` or `accelerate launch` started, as their environment variables say."""

import os


def launched_processes() -> int:
    """World size; 1 without a launcher. A lone WORLD_SIZE, as some clusters set it, says nothing."""
    launched = "LOCAL_RANK" in os.environ and "RANK" in os.environ
    return int(os.environ.get("WORLD_SIZE", "1")) if launched else 1


def is_first_process() -> bool:
    """Whether this process has rank 0, which talks to the user and writes files; true without a launcher."""
    return os.environ.get("RANK", "0") == "0"
