"""Live bytes of tensors: exact on what is known, and the same on the meta device as on the CPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from portraitkit.memory_trace import LiveBytes, fused_attention, size_of, tensors_of, tracing


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
    """Attention and a wide layer, three times."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.again = again
        self.layers = nn.ModuleList(nn.Linear(32, 96) for _ in range(3))
        self.out = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))

    def block(self, x, place):
        q, k, v = self.layers[place](x).view(2, 64, 3, 4, 8).permute(2, 0, 3, 1, 4)
        return x + F.gelu(self.out[place](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 64, 32)))

    def forward(self, x):
        for place in range(3):
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
