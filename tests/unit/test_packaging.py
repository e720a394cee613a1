import doctest
import hashlib
import importlib
import re
import resource
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from portraitkit.cli import PACKAGES

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = PROJECT["scripts"]
DATA = {".bin", ".safetensors", ".toml", ".json", ".html"}


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("name", [module_name(path) for path in SOURCES])
def test_every_module_imports_and_its_examples_hold(name: str):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    assert doctest.testmod(module).failed == 0


def test_the_wheel_holds_the_six_packages_and_their_data(tmp_path: Path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"portraitkit-{PROJECT['version']}.dist-info"
    assert {name.split("/")[0] for name in names} == {*PACKAGES, info}
    data = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix in DATA]
    assert data
    missing = {path.relative_to(ROOT).as_posix() for path in (*data, *(ROOT / source for source in SOURCES))} - names
    assert not missing
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"} <= names


@pytest.mark.parametrize("path", [*SOURCES, *sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py"))], ids=str)
def test_no_file_reaches_400_lines(path: Path):
    assert len((ROOT / path).read_text().splitlines()) < 400


def test_notice_names_every_weight_file_by_its_hash():
    notice = (ROOT / "NOTICE").read_text()
    weights = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix in {".bin", ".safetensors"}]
    assert len(weights) >= 7
    assert not [path for path in weights if hashlib.sha256(path.read_bytes()).hexdigest() not in notice]
    assert sum(path.stat().st_size for path in weights) < 30 * 2**20


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_quick_and_loads_no_torch(command: str):
    """Under .5 s of processor time, which a busy machine does not stretch."""
    module, function = COMMANDS[command].split(":")
    code = (
        f"import atexit, sys; sys.argv = [{command!r}, '--help']\n"
        "heavy = {'torch', 'numpy', 'transformers', 'diffusers'}\n"
        "atexit.register(lambda: print(sorted(heavy & sys.modules.keys()), file=sys.stderr))\n"
        f"from {module} import {function}; {function}()"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert shown.returncode == 0 and f"usage: {command}" in shown.stdout
    assert f"Example: {command} " in shown.stdout or "SUBCOMMAND" in shown.stdout
    assert shown.stderr == "[]\n"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_the_lock_holds_versions_only_and_every_dependency():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9][a-z0-9-]*==[\w.]+", line)] == []
    locked = {line.split("==")[0] for line in lines}
    wanted = [
        *PROJECT["dependencies"],
        *(name for extra in PROJECT["optional-dependencies"].values() for name in extra),
    ]
    names = {re.match(r"[\w-]+", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert names - locked == {"ray", "atheris"}  # a cluster has the one; make fuzz asks for the other
