"""Commands that serve, as a user starts them, in processes of their own: forked from one that has imported the heavy libraries once."""

import multiprocessing
import os
import sys
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "reward_models.workers.server",
        "uvicorn",
        "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
        "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
        "pyiqa.default_model_configs",
    ]
)


def served(entry: str, *argv: object, log: Path, **environment: str) -> BaseProcess:
    """A process of the command `module:function`, with one thread; what it says on stderr goes to `log`."""
    process = FORKS.Process(target=_serve, args=(entry, [*map(str, argv)], str(log), {**os.environ, **environment}), daemon=True)
    process.start()
    return process


def _serve(entry: str, argv: list[str], log: str, environment: dict[str, str]) -> None:
    import torch

    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    module, _, name = entry.partition(":")
    sys.argv = [name.replace("_", "-"), *argv]
    getattr(import_module(module), name)()
