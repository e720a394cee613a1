"""A CUDA device that is none: tensors say that they are on it, compute on the CPU, and refuse to meet tensors of the CPU.

Under `torch._subclasses.fake_tensor.FakeTensorMode` the same code would have no values, and a training step asks for many: which groups
have a spread, how large a gradient is, where a face lies; and without a driver its backward fails. Here every operation is checked by the
rule of a real device and then done for real. What is not like CUDA: kernels, their rounding, memory, streams.

The rule: tensors of an operation are on one device, but for numbers (tensors without a dimension) of the CPU; copies between devices; and
indices into a tensor of the device, which may be on the CPU.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
INSIDE = torch.device("lazy", 0)  # As torch's C++ knows the device: one that needs no driver and whose backward runs where it is called
aten = torch.ops.aten
COPIES = (aten._to_copy, aten.copy_, aten.to, aten._has_compatible_shallow_copy_type)
INDEXING = (aten.index, aten._unsafe_index, aten.index_put, aten.index_put_, aten._index_put_impl_)


WAITING = (aten._local_scalar_dense, aten.nonzero, aten.masked_select)
waits: list[str] = []
"""What the CPU has waited for so far, where a real device has work in its queue: numbers and copies that come from it, pageable memory that
goes there, and indices of the CPU."""


class OnCuda(Tensor):
    """A tensor that says it is on the device; `held` has its values."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]
    device = property(lambda self: CUDA)  # pyright: ignore[reportAssignmentType]
    is_cuda = property(lambda self: True)  # pyright: ignore[reportAssignmentType]

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnCuda":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=INSIDE, **layout)
        made.held = held
        return made

    def __repr__(self) -> str:  # pyright: ignore
        return f"OnCuda({self.held!r})"

    def tolist(self) -> Any:
        waits.append("tolist")
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert {CUDA} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")

    __array__ = numpy  # pyright: ignore[reportAssignmentType]

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None  # by which modules know that their parameters are to be swapped, not overwritten

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], context: None, size: Any, stride: Any) -> "OnCuda":
        return OnCuda(inner["held"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Names(TorchFunctionMode):
    """Calls with `cuda` in them, as torch's C++ is to see them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = _each(_inside, args), _each(_inside, kwargs or {})
        if args and isinstance(args[0], OnCuda) and func in (Tensor.tolist, Tensor.numpy):
            return getattr(args[0], func.__name__)()
        if args and isinstance(args[0], OnCuda) and func in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = (args[0], tuple(torch.tensor(part) if isinstance(part, list) else part for part in index), *args[2:])
        if func is torch.tensor:  # whose numbers may be tensors of the device: it reads them one by one
            args = _each(lambda value: value.item() if isinstance(value, OnCuda) and not value.ndim else value, args)
        return func(*args, **kwargs)


class _Operations(TorchDispatchMode):
    """Sees what no tensor of the device takes part in: factories and copies to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


def _each(change: Callable[[Any], Any], tree: Any) -> Any:
    """What is in tuples, lists and dictionaries, changed: `tree_map`, which is most of the time of an operation, for these alone."""
    if (kind := type(tree)) is tuple or kind is list:
        return kind([_each(change, part) for part in tree])
    return {name: _each(change, part) for name, part in tree.items()} if kind is dict else change(tree)


def _leaves(tree: Any) -> Iterator[Any]:
    for part in tree.values() if type(tree) is dict else tree:
        if type(part) in (tuple, list, dict):
            yield from _leaves(part)
        else:
            yield part


@cache
def _shares(func: Any) -> bool:
    """Whether what an operation returns may share memory with what it is given."""
    return any(argument.alias_info is not None for argument in func._schema.arguments)


def _inside(value: Any) -> Any:
    named = isinstance(value, str) and value.partition(":")[0] == "cuda"
    return INSIDE if named or (isinstance(value, torch.device) and value.type == "cuda") else value


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is aten._fused_sdp_choice.default:
        return 0  # attention by plain operations: which fused ones there are differs from device to device
    leaves = [*_leaves(args), *_leaves(kwargs)]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    here = any(isinstance(tensor, OnCuda) for tensor in tensors)
    if here:
        _check(func, args, tensors)
    asked = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
    there = asked.type == INSIDE.type if asked is not None else here
    if func is aten.to.other:
        there = isinstance(args[1], OnCuda)
    mixed = here and any(not isinstance(tensor, OnCuda) for tensor in tensors)
    copied = func.overloadpacket in COPIES and (here != there or mixed)
    indexed = func.overloadpacket in INDEXING and here and not all(isinstance(index, OnCuda) for index in args[1] if index is not None)
    if copied or indexed or (here and func.overloadpacket in WAITING):
        waits.append(str(func))
    out = func(*_each(_held, args), **_each(_held, kwargs))
    if not there:
        return out
    if not here and any(value is tensor for value in _leaves((out,)) for tensor in tensors):
        out = out.clone()  # a copy to the device shares nothing
    out = _each(lambda value: OnCuda(value) if isinstance(value, Tensor) else value, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if here and _shares(func) else out


def _held(value: Any) -> Any:
    inside = isinstance(value, torch.device) and value.type == INSIDE.type
    return value.held if isinstance(value, OnCuda) else CPU if inside else value


def _check(func: Any, args: Any, tensors: list[Tensor]) -> None:
    if func.overloadpacket in COPIES:
        return
    if func.overloadpacket in INDEXING and isinstance(args[0], OnCuda):
        tensors = [value for value in (args[0], *args[2:3]) if isinstance(value, Tensor)]
    alien = next((tensor for tensor in tensors if not isinstance(tensor, OnCuda) and tensor.ndim), None)
    if alien is not None and any(isinstance(tensor, OnCuda) for tensor in tensors):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {CUDA} and cpu! ({func}: one of the CPU has "
            f"shape {tuple(alien.shape)})"
        )


def _backward(*args: Any, **kwargs: Any) -> Any:
    """Functions with a backward of their own name the device there, too."""
    with _Names():
        return torch.autograd.graph._engine_run_backward(*args, **kwargs)


@contextmanager
def pretend_cuda() -> Iterator[None]:
    """While active, `cuda` names the device."""
    with (
        patch.object(torch.cuda, "is_available", lambda: True),
        patch.object(torch.cuda, "empty_cache", lambda: None),
        patch.object(torch, "get_device_module", lambda device=None: torch.cuda),
        patch.object(Tensor, "pin_memory", lambda self: self),
        patch.object(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state()),
        patch.object(torch.cuda, "set_rng_state", lambda state, device: None),
        patch.object(torch.autograd, "_engine_run_backward", _backward),
        patch.object(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda self: None),
        _Names(),
        _Operations(),
    ):
        torch._C._set_only_lift_cpu_tensors(True)  # numbers become a tensor of the CPU first, which is then seen to move
        try:
            yield
        finally:
            torch._C._set_only_lift_cpu_tensors(False)


PLACES = [pytest.param(pretend_cuda, 1.0, id="pretended"), pytest.param(nullcontext, 50.0, id="real", marks=pytest.mark.gpu)]
"""Where a test of the device runs, and how many times as far off the CPU's values it may be: a real GPU has kernels of its own."""
