"""Options and skips shared by all tests: slow ones need --run-slow, gpu ones need a device."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# No time limit an example: a busy machine is not a mistake of the code.
settings.register_profile("portraitkit", deadline=None)
settings.load_profile("portraitkit")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")


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


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny judge that can be read and knows nothing, see `tiny_judge`."""
    from tiny_judge import write_tiny_judge

    return write_tiny_judge(tmp_path_factory.mktemp("judge"))
