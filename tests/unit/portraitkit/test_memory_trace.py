"""Live bytes of tensors: exact on what is known, and the same on the meta device as on the CPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from portraitkit.memory.trace import LiveBytes, by_depth, fused_attention, size_of, stacks_of, tensors_of, tracing


def test_it_counts_what_is_alive():
    held = torch.zeros(1000)
    with LiveBytes([held], ("cpu",)) as live:
        a = held + 1
        assert live.now == 8000
        view = a[:10].view(2, 5)
        assert live.now == 8000  # a view has no storage of its own
        del a
        assert live.now == 8000  # and keeps that of another
        del view
        assert live.now == 4000 and live.peak == 8000
        held.add_(1)
        assert live.peak == 8000


def test_only_the_devices_asked_for_count():
    with LiveBytes(devices=("meta",)) as live:
        torch.zeros(10)
        kept = torch.zeros(10, device="meta")
    assert live.peak == 40 and len(kept) == 10


class Net(nn.Module):
    """Attention and a wide layer, some times."""

    def __init__(self, again: bool, depth: int = 3) -> None:
        super().__init__()
        self.again = again
        self.layers = nn.ModuleList(nn.Linear(32, 96) for _ in range(depth))
        self.out = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth))

    def block(self, x, place):
        q, k, v = self.layers[place](x).view(2, 64, 3, 4, 8).permute(2, 0, 3, 1, 4)
        return x + F.gelu(self.out[place](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 64, 32)))

    def forward(self, x):
        for place in range(len(self.layers)):
            x = checkpoint(self.block, x, place, use_reentrant=False) if self.again else self.block(x, place)
        return x


def backward_peak(device: str, again: bool) -> int:
    with torch.device(device):
        net, x = Net(again), torch.empty(2, 64, 32)
    with fused_attention(), LiveBytes(tensors_of(net), (device,)) as live:
        net(x).square().sum().backward()
    return live.peak


@pytest.mark.parametrize("again", [False, True])
def test_meta_counts_what_the_cpu_holds(again):
    assert backward_peak("meta", again) == pytest.approx(backward_peak("cpu", again), rel=0.02)


def test_checkpointing_shows():
    assert backward_peak("meta", True) < 0.7 * backward_peak("meta", False)


@pytest.mark.parametrize("again", [False, True])
def test_a_deep_stack_is_extended_from_a_shallow_one(again):
    depth = 14
    with torch.device("meta"):
        net, x = Net(again, depth), torch.empty(2, 64, 32)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    seen: list[int] = []

    def extra() -> int:
        seen.append(len(net.layers))
        net.out._modules = dict(list(whole.items())[: len(net.layers)])  # the other half of each block
        given = x.clone().requires_grad_()
        with tracing(tensors_of(net)) as live:
            before = live.now
            net(given).square().sum().backward()
        return live.peak - before

    whole = net.out._modules
    exact = extra()
    assert stacks_of(net) == [net.layers, net.out]
    assert by_depth([net.layers], extra) == pytest.approx(exact, rel=0.01)
    assert seen == [depth, 2, 3] and len(net.layers) == depth


@pytest.mark.parametrize(("pattern", "runs"), [("LLLF" * 4, [4, 8]), ("LF" * 5 + "L", [3, 5]), ("L" * 9 + "F", [10, 10])])
def test_kinds_of_blocks_that_take_turns_are_extended_by_rounds(pattern, runs):
    with torch.device("meta"):
        stack = nn.ModuleList(nn.Linear(4, 4 if kind == "L" else 8) for kind in pattern)
    seen: list[int] = []

    def measure() -> int:
        seen.append(len(stack))
        return 5 + sum(module.weight.numel() for module in stack)

    assert by_depth([stack], measure) == 5 + sum(module.weight.numel() for module in stack) and seen == runs


def test_a_shallow_stack_is_run_whole():
    net = Net(False, 4)
    assert by_depth(stacks_of(net), lambda: 10 * len(net.layers)) == 40


def test_torchs_attention_is_itself_again_afterwards():
    before = F.scaled_dot_product_attention
    with pytest.raises(ZeroDivisionError), tracing():
        assert F.scaled_dot_product_attention is not before
        _ = 1 / 0
    assert F.scaled_dot_product_attention is before


def test_a_mask_and_shared_heads_keep_their_shape():
    query, key = torch.empty(2, 6, 5, 8, device="meta"), torch.empty(2, 2, 5, 8, device="meta")
    mask = torch.empty(2, 1, 5, 5, dtype=torch.bool, device="meta")
    with tracing() as live:
        out = F.scaled_dot_product_attention(query, key, key, attn_mask=mask, enable_gqa=True)
    assert out.shape == query.shape and live.peak >= size_of([out])
