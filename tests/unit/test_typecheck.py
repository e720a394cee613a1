"""The tests' own conditions: annotations are checked, and only our modules are compiled for it."""

from dataclasses import dataclass
from importlib.machinery import SourceFileLoader

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor
from typecheck import check

from portraitkit.pictures import images


def test_annotations_are_checked():
    with pytest.raises(TypeCheckError):
        images.resize(torch.rand(64, 64), (32, 32))


def test_what_users_run_and_what_a_checked_module_imports_is_not_compiled_for_it():
    """Else torch and transformers take some ten seconds, and a command in a process of its own has the tests' checks."""
    assert type(images.__loader__).__module__ == "typecheck" and type(torch.__loader__) is SourceFileLoader
    plain = SourceFileLoader(images.__name__, images.__file__)
    for loader, checked in ((images.__loader__, True), (plain, False), (images.__loader__, True)):  # whichever left its bytecode
        assert ("__check__" in loader.get_code(images.__name__).co_names) == checked


def joined(a: Float[Tensor, " n"], b: Float[Tensor, " n"], cut: bool = False) -> Float[Tensor, " n"]:
    return a + b[: len(a)] if not cut else a[1:]


@dataclass
class Made:
    number: int


def test_the_sizes_of_one_call_agree_and_the_next_call_has_its_own():
    call = check(joined)
    assert [len(call(torch.ones(n), torch.ones(n))) for n in (2, 3)] == [2, 3]
    for wrong in ((torch.ones(2), torch.ones(3)), (torch.ones(2), torch.ones(2), True)):  # what is given; what comes back
        with pytest.raises(TypeCheckError):
            call(*wrong)


def test_what_has_no_array_is_checked():
    with pytest.raises(TypeCheckError):
        check(Made)("1")
    assert Made(1).number == 1
