"""TOPIQ's network (pyiqa's CFANet without a reference) with the same weights and the same values, computed in fewer operations.

What is saved: batch normalisation and activations are part of the convolutions; of the two halves of the gates' first convolution, the
one that only feeds another 1 x 1 convolution is multiplied into that one; attention does not form its weights.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.transforms.functional import resize

from benchmarks.nets.fused import FusedConv, fold


class Gate(nn.Module):
    """Gated local pooling, pyiqa's GatedConv: GELU of a 1 x 1 convolution, times a weight in (0, 1) for every place."""

    def __init__(self, gate: Any) -> None:
        super().__init__()
        split, first, middle, last = gate.splitconv, gate.weight_blk[0], gate.weight_blk[2], gate.weight_blk[4]
        width = split.out_channels // 2
        value, inner = (nn.Conv2d(split.in_channels, out, 1) for out in (width, first.out_channels))
        value.weight.data, value.bias.data = split.weight[:width], split.bias[:width]  # pyright: ignore[reportOptionalMemberAccess]
        outer, weight, bias = first.weight[..., 0, 0].double(), split.weight[width:, :, 0, 0].double(), split.bias[width:].double()
        inner.weight.data = (outer @ weight)[..., None, None]
        inner.bias.data = outer @ bias + first.bias.double()  # pyright: ignore[reportOptionalMemberAccess]
        self.value, self.inner, self.middle = (
            FusedConv(value, None, "gelu"),
            FusedConv(inner, None, "gelu"),
            FusedConv(middle, None, "gelu"),
        )
        # to one channel by 3 x 3: to nine by 1 x 1, which are then shifted and summed
        nine = nn.Conv2d(last.in_channels, 9, 1, bias=False)
        nine.weight.data = last.weight[0].permute(1, 2, 0).reshape(9, -1, 1, 1)
        self.nine, self.bias = FusedConv(nine), float(last.bias)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        height, width = x.shape[-2:]
        parts = F.pad(self.nine(self.middle(self.inner(x))), (1, 1, 1, 1))
        total = torch.full_like(parts[:, :1, 1:-1, 1:-1], self.bias)
        for place in range(9):
            row, column = divmod(place, 3)
            total += parts[:, place : place + 1, row : row + height, column : column + width]
        return self.value(x).mul_(total.sigmoid_())


class FastTopiq(nn.Module):
    """Pictures to scores.

    Args:
        net: pyiqa's CFANet over a ResNet, without a reference, in one piece; its parts are changed and used.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        assert not net.use_ref and net.crops == 1 and net.num_class == 1
        self.net = net
        fold(net.semantic_model)
        self.gates = nn.ModuleList([Gate(gate) for gate in net.weight_pool])
        self.reduce = nn.ModuleList([FusedConv(layer[0], None, "gelu") for layer in net.dim_reduce])
        height, width = net.h_emb, net.w_emb
        places = torch.cat([height.expand(-1, -1, -1, width.shape[3]), width.expand(-1, -1, height.shape[2], -1)], 1)
        self.places = nn.Buffer(places.detach().clone(), persistent=False)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1"]:
        """Scores; RGB in [0, 1]."""
        net = self.net
        if net.test_img_size is not None:
            x = resize(x, net.test_img_size, antialias=True)
        levels = net.semantic_model(((x - net.default_mean) / net.default_std).contiguous(memory_format=torch.channels_last))
        cells = levels[-1].shape[-2:]
        tokens = []
        for level in reversed(range(len(levels))):
            gated = self.gates[level](levels[level])
            if gated.shape[2] > cells[0] and gated.shape[3] > cells[1]:
                gated = F.adaptive_avg_pool2d(gated, cells)
            places = F.interpolate(self.places, gated.shape[2:], mode="bicubic")
            token = (self.reduce[level](gated) + places).flatten(2).permute(2, 0, 1)
            for layer in net.sa_attn_blks[level].layers:
                token = _attended(layer, token)
            tokens.append(token)
        query = tokens[0]
        for block, memory in zip(net.attn_blks, tokens[1:], strict=True):
            for layer in block.layers:
                query = _crossed(layer, query, memory)
        return net.score_linear(_attended(net.attn_pool, query).mean(0))


def _attended(layer: Any, tokens: Float[Tensor, "k n dim"]) -> Float[Tensor, "k n dim"]:
    """Tokens attending to each other."""
    start = layer.norm1(tokens)
    return _fed(layer, tokens + layer.self_attn(start, start, start, need_weights=False)[0], layer.norm2)


def _crossed(layer: Any, tokens: Float[Tensor, "k n dim"], memory: Float[Tensor, "m n dim"]) -> Float[Tensor, "k n dim"]:
    """Tokens attending to others."""
    memory, start = layer.norm2(memory), layer.norm1(tokens)
    return _fed(layer, tokens + layer.multihead_attn(start, memory, memory, need_weights=False)[0], layer.norm3)


def _fed(layer: Any, tokens: Float[Tensor, "k n dim"], norm: nn.Module) -> Float[Tensor, "k n dim"]:
    return tokens + layer.linear2(layer.activation(layer.linear1(norm(tokens))))
