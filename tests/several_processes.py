"""Starts `align-retoucher` in several processes, as torchrun would, for the tests: torch and diffusers are imported once for all of them.

Reads jobs from stdin, one JSON object a line, and writes the exit codes of each to stdout. Run as a script, one thread.
"""

import hashlib
import json
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # as `run_command` does

from policies.retoucher import own_groups, run  # noqa: E402 (imported here, once)
from policies.retoucher.backbones import flux_kontext, tiny  # noqa: E402, F401 (the same)
from policies.retoucher.main import align_retoucher  # noqa: E402


def become(rank: int, job: dict[str, Any], port: int) -> None:
    """Run the command as one of the job's processes; never returns."""
    if job["processes"] > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["processes"], "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})
    log = Path(f"{job['log']}.{rank}")
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    draw, noises = own_groups.noise_of_groups, log.with_suffix(f".noise.{rank}")

    def noted(*given: Any, **settings: Any) -> Any:
        """Note what each candidate's noise is, and stop where the job says so."""
        noise = draw(*given, **settings)
        samples = [[values[row] for values in noise.steps.values()] for row in range(len(given[2]) * settings["group_size"])]
        digests = [hashlib.sha256(b"".join(value.numpy().tobytes() for value in sample)).hexdigest() for sample in samples]
        with noises.open("a") as file:
            file.write(json.dumps({"step": settings["iteration"], "groups": given[2], "noise": digests}) + "\n")
        if [rank, settings["iteration"]] == job.get("interrupt"):
            os.kill(os.getpid(), signal.SIGINT)
        return noise

    divide = run.divide_base

    def weighed(backbone: Any, device: str) -> None:
        """Note how much of the base this process holds after it was divided."""
        whole = sum(parameter.numel() for parameter in backbone.transformer.parameters())
        divide(backbone, device)
        own = sum(parameter.to_local().numel() for parameter in backbone.transformer.parameters())
        log.with_suffix(f".held.{rank}").write_text(str(own / whole))

    own_groups.noise_of_groups, run.divide_base = noted, weighed
    sys.argv = ["align-retoucher", *job["options"]]
    code: Any = 1
    try:
        align_retoucher()
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Work through the jobs."""
    for line in sys.stdin:
        job = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for rank in range(job["processes"]):
            if (child := os.fork()) == 0:
                become(rank, job, port)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    main()
