"""A small pair set on disk, made once."""

import shutil

import pytest

from preference_data.commands.build import build_pairs
from preference_data.commands.options import BuildConfig


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Eight pairs of four synthetic people, at 64 px."""
    folder = tmp_path_factory.mktemp("built") / "pairs"
    config = BuildConfig("embedded", output_dir=folder, count=4, resolution=64, split_shares=(0.5, 0.25, 0.25))
    assert build_pairs(config) == 0
    return folder


@pytest.fixture
def pair_set(built, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(built, tmp_path / "pairs")
