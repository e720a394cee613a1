"""Options and skips shared by all tests: slow ones need --run-slow, gpu ones need a device."""

import functools
import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from typecheck import install

# Before the hub is imported: without a network a name that is not there is asked for six times, in 23 s; with one, the hub would be told.
os.environ["HF_HUB_OFFLINE"] = "1"
# Bytecode is kept, whatever the shell says: else every worker rewrites all tests, and every process that they start compiles all packages.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# No time limit an example: a busy machine is not a mistake of the code.
settings.register_profile("portraitkit", deadline=None)
settings.load_profile("portraitkit")

ROOT = Path(__file__).parents[1]
PACKAGES = ("portraitkit", "dpg", "preference_data", "reward_models", "policies", "benchmarks")
ARRAYS = [path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py") if "jaxtyping" in path.read_text()]
"""Modules whose annotations are checked."""
install(".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in ARRAYS)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_finish() -> None:
    """What was imported stays: no collection of garbage looks at it again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Compiled modules complain at the end of what was not collected."""
    gc.unfreeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--run-slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --run-slow"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="gpu: no CUDA device here"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What commands keep between runs does not go into the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PORTRAITKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def people_are_drawn_once() -> None:
    """The runs of all tests load the same embedded photos, a tenth of a second each. Where nothing collected has them, nothing is done."""
    if photos := sys.modules.get("policies.retoucher.photos"):
        photos.make_case = functools.lru_cache(maxsize=64)(photos.make_case)


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny judge that can be read and knows nothing, see `tiny_judge`."""
    from tiny_judge import write_tiny_judge

    return write_tiny_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Bit-exact comparisons need a fixed number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quick_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of a `ScriptedEndpoint` find it, and hardly wait before they ask again."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("portraitkit.endpoint.LONGEST_WAIT", 0.01)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium. Of one module: while it is there, its thread runs an event loop."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on PATH: pages are tested in a real browser")
    from patience import LONGEST
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"], timeout=1000 * LONGEST)
        yield opened
        opened.close()
