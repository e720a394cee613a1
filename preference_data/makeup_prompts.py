"""Makeup in words and numbers, `makeup.toml`: the instructions that go into data sets, so that data and task ask the same."""

import tomllib
from pathlib import Path

TABLES = tomllib.loads(Path(__file__).with_name("makeup.toml").read_text(encoding="utf-8"))
SHAPES = tuple(TABLES["shapes"])  # Names of what `preference_data.people.makeup_shapes` draws, which imports torch
MAKEUP: str = TABLES["prompts"]["makeup"].replace("{shapes}", ", ".join(SHAPES))
LIPS: str = TABLES["prompts"]["lips"]
