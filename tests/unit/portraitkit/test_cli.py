import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from portraitkit.cli import PACKAGES, run_command
from portraitkit.errors import ConfigError, FaceError, UserError

ROOT = Path(__file__).parents[3]


def exit_code(main) -> object:
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    return stop.value.code


def raising(error: BaseException):
    def main(argv: list[str]) -> int:
        raise error

    return main


def run_python(code: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options)


def test_arguments_and_exit_codes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["command", "--a", "b"])
    seen: list[list[str]] = []
    assert exit_code(lambda argv: seen.append(argv)) is None
    assert exit_code(lambda argv: 3) == 3
    assert exit_code(raising(SystemExit(0))) == 0
    assert seen == [["--a", "b"]]


@pytest.mark.parametrize("kind", [UserError, ConfigError, FaceError])
def test_a_users_mistake_is_one_line_and_exit_code_2(kind: type[UserError], capsys: pytest.CaptureFixture[str]):
    assert exit_code(raising(kind("bad\nname\x1b[31m é \udcff.png: give another"))) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err == "error: bad\\nname\\x1b[31m é \\udcff.png: give another\n"


def test_a_path_that_is_too_long_is_a_users_mistake(capsys: pytest.CaptureFixture[str]):
    assert exit_code(lambda argv: Path("n" * 300).stat() and 0) == 2
    assert capsys.readouterr().err == f"error: {'n' * 300}: File name too long; give another path\n"


def test_a_place_that_may_not_be_entered_is_a_users_mistake(capsys: pytest.CaptureFixture[str]):
    def enter(_: list[str]) -> None:
        raise PermissionError(13, "Permission denied", "locked/a.png")

    assert exit_code(enter) == 2
    assert capsys.readouterr().err == "error: locked/a.png: Permission denied; give another path\n"


def test_a_user_without_home_and_account_has_one_in_which_nothing_is_kept(monkeypatch: pytest.MonkeyPatch):
    """As in a container that is run for a number: all that looks below ~ ended in a traceback."""

    def nobody(user: int):
        raise KeyError(user)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.delenv("HOME")
    places: list[Path] = []
    assert exit_code(lambda _: places.append(Path("~/.cache/portraitkit").expanduser())) is None
    assert not places[0].is_file()
    with pytest.raises(OSError):
        places[0].mkdir(parents=True)


def test_sizes_that_no_memory_holds_are_a_users_mistake(capsys: pytest.CaptureFixture[str]):
    for ask in (lambda: torch.empty(10**15), lambda: np.empty(10**17), lambda: bytearray(10**17)):
        assert exit_code(lambda argv, ask=ask: ask() is None) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: not enough memory (") and err.endswith("sizes and counts smaller\n") and err.count("\n") == 1


def test_interrupt_is_quiet(capsys: pytest.CaptureFixture[str]):
    assert exit_code(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError("bug")))
    with pytest.raises(BrokenPipeError):  # some other pipe than standard output
        run_command(raising(BrokenPipeError("tracker")))


def test_a_reader_that_leaves_is_no_error():
    code = "from portraitkit.cli import run_command; run_command(lambda argv: print('line ' * 100_000))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.read(4) == b"line"
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(120) == 141


def test_the_package_that_shadows_ours_is_named(tmp_path: Path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    code = "import sys; sys.argv[1:] = []; from portraitkit.cli import run_command; run_command(lambda argv: print('ran'))"
    shadowed = run_python(code, cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
    assert shadowed.returncode == 2 and shadowed.stdout == ""
    assert shadowed.stderr.startswith(f"error: package benchmarks comes from {tmp_path / 'benchmarks'}, but portraitkit from")
    assert len(shadowed.stderr.splitlines()) == 1

    behind = run_python(code, cwd="/", env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"})
    assert (behind.returncode, behind.stdout) == (0, "ran\n")


def test_the_check_imports_nothing():
    code = "import sys; from portraitkit.cli import check_packages; check_packages(); print(sorted(sys.modules))"
    loaded = run_python(code, cwd=ROOT).stdout
    assert "'portraitkit'" in loaded
    assert not [name for name in PACKAGES[1:] if f"'{name}'" in loaded]


def test_every_command_says_its_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["align-retoucher", "--version"])
    with pytest.raises(SystemExit) as stop:
        run_command(lambda argv: 1)
    assert stop.value.code == 0 and capsys.readouterr().out == f"portraitkit {version('portraitkit')}\n"


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_command_that_is_started_without_streams_ends_as_ever(closed, tmp_path):
    """As some daemons and schedulers start it."""
    code = "from portraitkit.cli import run_command; from portraitkit.errors import UserError; run_command({})"
    for name, main in (("well", "lambda argv: print('said')"), ("badly", "lambda argv: open('x', 'rb')")):
        (tmp_path / f"{name}.py").write_text(code.format(main))
    for name, wanted in (("well", 0), ("badly", 1)):
        shell = f"exec {sys.executable} {tmp_path / name}.py {closed}"
        done = subprocess.run(["sh", "-c", shell], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        assert done.returncode == wanted and "NoneType" not in done.stderr, done.stderr


def test_a_working_folder_that_is_gone_is_said(tmp_path):
    code = "from portraitkit.cli import run_command; from pathlib import Path; run_command(lambda argv: Path('x').resolve() and 0)"
    shell = f'mkdir gone; cd gone; rmdir ../gone; exec {sys.executable} -c "{code}"'
    options = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    done = subprocess.run(["sh", "-c", shell], **options)
    assert (done.returncode, done.stderr) == (2, "error: the folder that this was started in is gone; change into another\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("count", [1, 100_000])
def test_output_that_cannot_be_written_is_said(count, tmp_path):
    """Behind > on a full disk, whether it fails at a print or at the end."""
    (tmp_path / "c.py").write_text(f"from portraitkit.cli import run_command; run_command(lambda argv: print('said\\n' * {count}))")
    with open("/dev/full", "w") as full:
        options = {"env": os.environ | {"PYTHONPATH": str(ROOT)}, "stdout": full, "stderr": subprocess.PIPE, "text": True}
        done = subprocess.run([sys.executable, str(tmp_path / "c.py")], **options)
    said = "error: the output: could not be written (No space left on device); check the folder and the disk\n"
    assert (done.returncode, done.stderr) == (2, said)
