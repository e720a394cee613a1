"""`python -m portraitkit.ray_shards N -- COMMAND ...`: the N shards of a command as rows of a Ray data set, then the merge.

Ray chooses where a shard runs, and runs it again elsewhere when its machine is lost; what a shard has made is in its file, so nothing is
made twice. All machines must see the same file system, and have portraitkit installed at the same place. Needs the extra `ray`.
"""

import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

from portraitkit.cli import run_command
from portraitkit.errors import ConfigError, UserError
from portraitkit.runs.shards import parse_shard

USAGE = "usage: python -m portraitkit.ray_shards N [--gpus G] [--cpus C] -- COMMAND ..., for example 8 -- make-preferences build photos"
LAST = 2000  # Characters of a failed shard's output that are shown


def run_on_ray(argv: list[str]) -> int:
    """Run all shards on the cluster that `RAY_ADDRESS` names, or on this machine where there is none; then merge here, whose exit code
    counts.

    `argv` has the number of shards; `--gpus` and `--cpus` that each needs (0 and 1); after `--` the command.

    Raises:
        ConfigError: the arguments cannot work, or Ray is not installed.
        UserError: shards failed; each is named with the end of what it said.
    """
    count, gpus, cpus, command = _arguments(argv)
    try:
        ray, data = import_module("ray"), import_module("ray.data")
    except ImportError as error:
        raise ConfigError(f"Ray is not installed ({error}); pip install 'portraitkit[ray]'") from error
    ray.init(log_to_driver=False, include_dashboard=False)
    try:
        rows = [{"command": [*command, "--shard", f"{index + 1}/{count}"], "folder": str(Path.cwd())} for index in range(count)]
        # A block a row: every shard is scheduled on its own.
        done = data.from_items(rows, override_num_blocks=count).map(run_shard, num_gpus=gpus, num_cpus=cpus).take_all()
    finally:
        ray.shutdown()
    failed = [row for row in done if row["code"]]
    if failed:
        told = "; ".join(f"{row['shard']} (exit code {row['code']}): {row['said'].strip().splitlines()[-1:]}" for row in failed)
        raise UserError(f"{len(failed)} of {count} shards failed: {told}; the same command goes on")
    return subprocess.run(command, check=False).returncode


def run_shard(row: dict[str, Any]) -> dict[str, Any]:
    """One shard, in a process of its own: Ray's workers are kept alive, and a command expects a fresh one. The row has a `command`, which
    ends with the shard, and its `folder`; what comes back `shard`, `code` and `said`, the end of its output."""
    command = [str(text) for text in row["command"]]
    done = subprocess.run(command, cwd=row["folder"], capture_output=True, text=True, check=False)
    return {"shard": command[-1], "code": done.returncode, "said": (done.stdout + done.stderr)[-LAST:]}


def _arguments(argv: list[str]) -> tuple[int, float, float, list[str]]:
    options, command = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    needs = {"--gpus": 0.0, "--cpus": 1.0}
    if not options or len(options) % 2 == 0 or not command or not options[0].isdigit():
        raise ConfigError(USAGE)
    for name, text in zip(options[1::2], options[2::2], strict=True):
        try:
            needs[name] = float(text) if name in needs else -1.0
        except ValueError:
            needs[name] = -1.0
        if needs[name] < 0:
            raise ConfigError(f"{name} {text}: must be --gpus or --cpus and a number of at least 0; {USAGE}")
    if any(text.partition("=")[0] == "--shard" for text in command):
        raise ConfigError("--shard: is added by portraitkit.ray_shards itself; leave it out")
    return parse_shard(f"{options[0]}/{options[0]}").count, needs["--gpus"], needs["--cpus"], command


if __name__ == "__main__":
    run_command(run_on_ray)
