"""The tests' own conditions: annotations are checked, and only our modules are compiled for it."""

import sys

import pytest
import torch
from jaxtyping import TypeCheckError

from portraitkit.pictures.images import resize


def test_annotations_are_checked():
    with pytest.raises(TypeCheckError):
        resize(torch.rand(64, 64), (32, 32))


def test_what_a_checked_module_imports_is_compiled_under_its_own_name():
    """Else torch and transformers are compiled anew, some ten seconds."""
    names = {name: str(vars(module).get("__cached__")).rpartition("/")[2] for name, module in sys.modules.items()}
    assert "torch" in names and not [name for name, file in names.items() if "opt-jaxtyping" in file]
