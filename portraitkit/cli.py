"""What every console command shares: mistakes in one line, quiet interrupts and pipes, one home for all packages."""

import atexit
import errno
import importlib.util
import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from portraitkit.errors import ConfigError, UserError

PACKAGES = ("portraitkit", "dpg", "preference_data", "reward_models", "policies", "benchmarks")


def run_command(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Run a command on `sys.argv` and leave the process with its exit code.

    A UserError, a path too long or too little memory becomes one line `error: ...` on stderr and exit code 2; Ctrl-C gives 130; a reader
    that closed the pipe gives 141, silently. `--version` alone is answered here. Every other exception is a bug and keeps its traceback.
    `main` takes the arguments after the command's name and returns the exit code, None for 0.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin at barriers stall each other five times over on a busy machine
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it; it warns of kernels that nothing here uses
    try:
        Path.home()
    except RuntimeError:  # neither HOME nor an account, as in a container: nothing is kept there, and nothing found
        os.environ["HOME"] = os.devnull
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w", encoding="utf-8") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    try:
        code = _exit_code(main)
    except BrokenPipeError:
        if not _reader_left():
            raise
        _drop_output()
        code = 141
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)  # all is said: Ctrl-C while libraries are put away is silent
    sys.exit(code)


def command(main: Callable[[list[str]], int | None]) -> Callable[[], NoReturn]:
    """The console command that is called as a function is, and does what it does: see `run_command`."""
    return wraps(main)(lambda: run_command(main))


def run_subcommand(command: str, about: str, package: str, subcommands: Mapping[str, tuple[str, str, str]], argv: list[str]) -> int:
    """Run the subcommand that `argv` names, or print all with `about` for --help; returns the exit code.

    `subcommands` are name -> (its `module:function` of `package`, which takes the options; what it does; options of a typical call); the
    package's module `options` holds a class `NameConfig` for each. ConfigError: no subcommand is named, or an unknown one.
    """
    from portraitkit.config import load_config
    from portraitkit.discover import load_object
    from portraitkit.errors import nearest

    names = ", ".join(subcommands)
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: {command} SUBCOMMAND [options]\n\n{about}; each subcommand has its own --help.\n")
        print("\n".join(f"  {name:<12} {does}" for name, (_, does, _) in subcommands.items()))
        return 0
    if not argv:
        raise ConfigError(f"{command}: needs a subcommand: {names}; see {command} --help")
    name = argv[0]
    if name not in subcommands:
        raise ConfigError(f"{command} {name}: no such subcommand{nearest(name, subcommands)}; known: {names}")
    function, _, example = subcommands[name]
    config = load_config(load_object(f"{package}.options:{name.title()}Config"), argv[1:], prog=f"{command} {name}", example=example)
    return load_object(f"{package}.{function}")(config)


def check_packages() -> None:
    """Check that the six packages come from one folder: their names are common, and another may stand before ours.

    Raises:
        UserError: one of them is missing or comes from elsewhere; the message names the path.
    """
    home = Path(__file__).resolve().parents[1]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise UserError(f"package {name} is missing beside {home / 'portraitkit'}: install portraitkit again")
        found = [Path(folder).resolve() for folder in spec.submodule_search_locations or [spec.origin or ""]]
        if found != [home / name]:
            raise UserError(
                f"package {name} comes from {found[0]}, but portraitkit from {home}: rename that one, or take its folder out of PYTHONPATH"
            )


def _exit_code(main: Callable[[list[str]], int | None]) -> int | str | None:
    try:
        check_packages()
        try:
            if sys.argv[1:] == ["--version"]:
                print(f"portraitkit {version('portraitkit')}")
                return 0
            return main(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except UserError as error:
        print(f"error: {_one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except (OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, OSError) and error.filename and error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM):
            said = f"{error.filename}: {error.strerror}; give another path"
        elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            said = f"{error.filename or 'the output'}: could not be written ({error.strerror}); check the folder and the disk"
        elif isinstance(error, FileNotFoundError) and error.filename is None:  # os.getcwd
            said = "the folder that this was started in is gone; change into another"
        elif isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
            said = f"not enough memory ({error}); make the options' sizes and counts smaller"
        else:
            raise  # a bug
        _drop_output()
        print(f"error: {_one_line(said)}", file=sys.stderr)
        return ConfigError.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:
        return stop.code


def _one_line(text: str) -> str:
    """Line breaks and control characters escaped: messages may quote file names and data."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _drop_output() -> None:
    """What standard output still holds goes nowhere, or the interpreter fails to flush it at exit."""
    with suppress(OSError, ValueError):  # one of a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reader_left() -> bool:
    """Whether the broken pipe is standard output, not a tracker's or a worker's."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
