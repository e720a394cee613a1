"""The guides name commands and options that exist."""

import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs").rglob("*.md"))
ENTRIES = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
COMMAND = re.compile(rf"(?<![\w/.-])(\S*/)?({'|'.join(ENTRIES)})(?![\w-])([^#\n]*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z_-]*[a-z0-9]")
STARTERS = ("portraitkit.ray_shards", "docs/slurm/portraitkit.sbatch")
"""They find the command themselves."""
SUBCOMMANDS = {
    "make-preferences": ("build", "lint", "annotate", "merge", "export", "makeup", "emotion"),
    "blind-test": ("make", "serve", "report", "export"),
}
ALL = [(name, *more) for name in ENTRIES for more in [(), *((subcommand,) for subcommand in SUBCOMMANDS.get(name, ()))]]
OF_OTHERS = {
    "torchrun": "--standalone --nproc-per-node --nproc_per_node --nnodes --rdzv_backend --rdzv_endpoint --shutdown-timeout",
    "accelerate": "--multi_gpu --num_processes",
    "vLLM": "--max_model_len --chat-template",
    "SLURM": "--nodes --array",
    "portraitkit.ray_shards": "--gpus --cpus",
    "hf and uv": "--private --extra",
    "pytest, make and tools": "--run-slow --tiny --answers --only",
}
"""Options that the guides name, by whose they are."""


@pytest.fixture
def options_of(command):
    """A function (command, perhaps a subcommand) -> its options, as its help has them."""

    def call(name: str, *subcommand: str) -> set[str]:
        module, _, function = ENTRIES[name].partition(":")
        code, out, _ = command(getattr(import_module(module), function), *subcommand, "--help")
        assert code == 0
        return set(OPTION.findall(out))

    return call


def test_examples_and_options_are_those_of_the_commands(options_of):
    known = {key: options_of(*key) for key in ALL}
    of_others = set(" ".join(OF_OTHERS.values()).split())
    anyones = of_others.union(*known.values())
    wrong = []
    for page in GUIDES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        wrong += [f"{page.name}: {option}" for option in OPTION.findall(text) if option not in anyones]
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        for line in [line for block in blocks for line in block.splitlines()]:
            for prefix, name, rest in COMMAND.findall(line):
                words = rest.split()
                key = (name, *(words[:1] if words and words[0] in SUBCOMMANDS.get(name, ()) else ()))
                wrong += [f"{page.name}: {line}: {option}" for option in set(OPTION.findall(rest)) - known[key] - of_others]
                if prefix not in (".venv/bin/", "$bin/") and not any(starter in line for starter in STARTERS):
                    wrong.append(f"{page.name}: {line}: without .venv/bin/")
    assert not wrong, "\n".join(wrong)
