"""Starts a command in several processes for the tests: by torchrun, or as it would, heavy libraries being imported once for all runs.

The latter reads jobs from stdin, one JSON object a line, and writes the exit codes of each to stdout.
"""

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, CompletedProcess, Popen, run
from typing import Any

TESTS = Path(__file__).parent
Job = dict[str, Any]
"""processes: how many; log: file that the process numbered N writes to as LOG.N; options: of the command; more as the script likes."""


def torchrun(script: str, *argv: object, folder: Path, **environment: str) -> CompletedProcess[str]:
    """Two processes on this machine, as torchrun starts them in `folder`; `script` is the Python that calls the command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "start.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", port, folder / "start.py", *argv]
    variables = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1", **environment}
    return run([str(word) for word in command], capture_output=True, text=True, env=variables, timeout=3000, cwd=folder)


@contextmanager
def several(script: str, **environment: str) -> Iterator[Callable[[Job], list[int]]]:
    """A function that runs a job in a script of this folder that calls `serve`, and returns the exit codes of its processes.

    Args:
        script: its name.
        environment: further variables.
    """
    variables = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", **environment}
    with Popen([sys.executable, str(TESTS / script)], stdin=PIPE, stdout=PIPE, text=True, env=variables) as helper:
        assert helper.stdin is not None and helper.stdout is not None
        asked, answered = helper.stdin, helper.stdout

        def start(job: Job) -> list[int]:
            asked.write(json.dumps(job) + "\n")
            asked.flush()
            return json.loads(answered.readline())

        yield start
        asked.close()


def serve(call: Callable[[int, Job], None]) -> None:
    """Work through the jobs of stdin, with one thread.

    Args:
        call: the command as a process of a job runs it, from its number and the job; it may raise SystemExit.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        job = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for rank in range(job["processes"]):
            if (child := os.fork()) == 0:
                _become(rank, job, port, call)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), file=answers, flush=True)


def _become(rank: int, job: Job, port: int, call: Callable[[int, Job], None]) -> None:
    """Run the command as one of the job's processes; never returns."""
    if job["processes"] > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["processes"], "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})
    handle = os.open(f"{job['log']}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    code: Any = 1
    try:
        call(rank, job)
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
