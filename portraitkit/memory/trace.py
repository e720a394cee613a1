"""Bytes of live tensors: of a real computation, and of the same computation on the meta device, where nothing is computed or allocated.

The planner runs a model's own code on the meta device under `LiveBytes`; a test runs it for real under the same counter.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

SHALLOW = 8  # Blocks up to which a stack is run whole


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are alive and were seen (`now`), and their `peak`.

    A storage is seen when an operation reads or makes it, and counts until Python and autograd let go of it. What a kernel allocates for
    itself and frees before it returns is not seen, nor is what an allocator keeps in reserve. Tensors that are `held` are alive from the
    start; only `devices` of these types count, such as cpu or meta; all if empty.
    """

    def __init__(self, held: Iterable[Tensor] = (), devices: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.devices = devices
        self._seen: dict[int, weakref.ref] = {}
        for tensor in held:
            self.see(tensor)

    def see(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once."""
        if self.devices and tensor.device.type not in self.devices:
            return
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # a sparse tensor has none
            return
        if storage._cdata in self._seen:
            return
        size, key = storage.nbytes(), storage._cdata

        def forget(_: object) -> None:
            self.now -= size if self._seen.pop(key, None) is not None else 0

        self._seen[key] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it read and made."""
        result = func(*args, **(kwargs or {}))
        for value in (*args, *(kwargs or {}).values(), result):  # an operation takes and gives tensors, and lists of them
            for item in value if isinstance(value, list | tuple) else (value,):
                if isinstance(item, Tensor):
                    self.see(item)
        return result


@contextmanager
def fused_attention() -> Iterator[None]:
    """On the meta device, attention as the fused kernels of CPUs and GPUs keep it: its output and one number a row, no score matrix.

    Left alone, torch takes the unfused formula there, whose score matrices no real device would hold. torch's function is exchanged for the
    time being, because a `TorchFunctionMode` is not in force while a checkpointed block is computed again.
    """
    whole = F.scaled_dot_product_attention

    def exchanged(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _attention(query, *args, **kwargs) if query.is_meta else whole(query, *args, **kwargs)

    F.scaled_dot_product_attention = exchanged
    try:
        yield
    finally:
        F.scaled_dot_product_attention = whole


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False, **how: Any
) -> Tensor:
    if how.get("enable_gqa"):
        key, value = (heads.repeat_interleave(query.shape[1] // heads.shape[1], 1) for heads in (key, value))
    if attn_mask is not None:  # fused kernels take a mask of numbers
        attn_mask = torch.empty(attn_mask.shape, dtype=query.dtype, device="meta")
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=how.get("scale"))[0]


@contextmanager
def tracing(held: Iterable[Tensor] = ()) -> Iterator[LiveBytes]:
    """Count a computation on the meta device, in which the `held` tensors (the model) are alive all the while."""
    with fused_attention(), LiveBytes(held, ("meta",)) as live:
        yield live


def added_bytes(held: Sequence[Tensor], compute: Callable[[], Any], *networks: nn.Module) -> int:
    """Most bytes that a computation on the meta device adds to the tensors that are held: the model, and gradients that are there already.

    Its result counts; deep stacks of blocks of the `networks` are not run whole, see `by_depth`.
    """

    def once() -> int:
        with tracing(held) as live:
            before = live.now
            compute()
        return live.peak - before

    return by_depth([stack for network in networks for stack in stacks_of(network)], once)


def by_depth(stacks: Sequence[nn.ModuleList], measure: Callable[[], int]) -> int:
    """What `measure` gives for a model with deep stacks of blocks, from measurements with 2 and 3 of them a stack.

    What a pass holds at its peak grows by the same bytes with each block: what the block keeps for the backward (with checkpointing, its
    input). Where kinds of blocks take turns, as Qwen3.5's linear and full attention do, it grows so with each round of them, and one and
    two rounds are measured. Stacks of at most `SHALLOW` blocks are measured as they are.
    """
    deep = [stack for stack in stacks if len(stack) > SHALLOW]
    depths, whole, rounds = [len(stack) for stack in deep], [stack._modules for stack in deep], [_round(stack) for stack in deep]
    few = [2 + (depth - 2) % length for depth, length in zip(depths, rounds, strict=True)]

    def cut(lengths: Sequence[int]) -> int:
        for stack, modules, length in zip(deep, whole, lengths, strict=True):
            stack._modules = dict(list(modules.items())[:length])
        return measure()

    try:
        total = base = cut(few)
        for place, depth in enumerate(depths):
            more = cut([*few[:place], few[place] + rounds[place], *few[place + 1 :]]) - base
            total += (depth - few[place]) // rounds[place] * more
    finally:
        for stack, modules in zip(deep, whole, strict=True):
            stack._modules = modules
    return total


def _round(stack: nn.ModuleList) -> int:
    """After how many blocks their kinds, by names and shapes of their parameters, begin anew; all of them where they never do."""
    kinds = [[(name, parameter.shape) for name, parameter in block.named_parameters()] for block in stack]
    return next(length for length in range(1, len(kinds) + 1) if kinds[length:] == kinds[:-length])


def stacks_of(module: nn.Module) -> list[nn.ModuleList]:
    """The outermost stacks of blocks of one class in a model."""
    stacks: list[nn.ModuleList] = []
    inside: set[int] = set()
    for child in module.modules():
        if isinstance(child, nn.ModuleList) and id(child) not in inside and len({type(block) for block in child}) == 1:
            stacks.append(child)
            inside |= {id(below) for below in child.modules()}
    return stacks


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """A module's parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
