"""MUSIQ's network (pyiqa's MUSIQ) with the same weights and the same values, computed in fewer operations.

What is saved: weights are standardised once and not for every picture; patches that only fill a sequence up, which the original masks
out, are not computed; queries, keys and values come from one product; in the last layer only the token that is read is computed.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from benchmarks.nets.fused import FusedConv

AT_ONCE = 128  # Patches at once: their maps stay in a processor's cache


class FastMusiq(nn.Module):
    """Pictures to scores.

    Args:
        net: pyiqa's MUSIQ, in one piece; its parts are used.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        options = net.data_preprocess_opts
        assert options["max_seq_len_from_original_res"] == -1 and options["patch_stride"] == net.patch_size
        self.net, self.side, self.grid, self.lengths = net, net.patch_size, options["hse_grid_size"], sorted(options["longer_side_lengths"])
        self.root = _standardised(net.conv_root)
        block = net.block1
        self.convs = nn.ModuleList([_standardised(conv) for conv in (block.conv_proj, block.conv1, block.conv2, block.conv3)])
        self.layers = nn.ModuleList([Layer(layer) for layer in net.transformer_encoder.transformer.values()])

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1"]:
        """Scores; RGB in [0, 1]."""
        pixels = 2 * x - 1
        height, width = x.shape[-2:]
        tokens = []
        for scale, length in enumerate([*self.lengths, None]):
            scaled = pixels
            if length is not None:
                ratio = length / max(height, width)
                scaled = F.interpolate(pixels, (round(height * ratio), round(width * ratio)), mode="bicubic")
            tokens.append(self._tokens(scaled, scale))
        encoder = self.net.transformer_encoder
        state = torch.cat([encoder.cls.expand(len(x), -1, -1), *tokens], 1)
        for layer in self.layers[:-1]:
            state = layer(state, state)
        state = self.layers[-1](state[:, :1], state)
        values = self.net.head(encoder.encoder_norm(state)[:, 0])
        classes = values.shape[1]
        return values if classes == 1 else values @ torch.arange(1.0, classes + 1)[:, None]

    def _tokens(self, pixels: Float[Tensor, "n 3 h w"], scale: int) -> Float[Tensor, "n k dim"]:
        """Embedded patches of one size of the pictures, with what tells their places and their scale."""
        net, side = self.net, self.side
        count, _, height, width = pixels.shape
        rows, columns = math.ceil(height / side), math.ceil(width / side)
        down, across = rows * side - height, columns * side - width
        pixels = F.pad(pixels, (across // 2, across - across // 2, down // 2, down - down // 2))
        parts = pixels.unflatten(3, (columns, side)).unflatten(2, (rows, side)).permute(0, 2, 4, 3, 5, 1)
        patches = F.pad(parts.flatten(0, 2), (0, 0, 2, 3, 2, 3)).permute(0, 3, 1, 2)  # channels last in memory; what "same" pads
        tokens = torch.cat([self._stem(part) for part in patches.split(AT_ONCE)]).unflatten(0, (count, rows * columns))
        encoder = net.transformer_encoder
        where = _hashed(rows, self.grid)[:, None] * self.grid + _hashed(columns, self.grid)
        tokens += encoder.posembed_input.position_emb[0, where.flatten()]
        return tokens.add_(encoder.scaleembed_input.scale_emb[scale]) if encoder.use_scale_emb else tokens

    def _stem(self, patches: Float[Tensor, "k 3 h w"]) -> Float[Tensor, "k dim"]:
        net, block, (project, narrow, middle, wide) = self.net, self.net.block1, self.convs
        stem = F.max_pool2d(net.gn_root(self.root(patches)).relu_(), 3, 2, ceil_mode=True)
        inside = block.gn2(middle(block.gn1(narrow(stem)).relu_())).relu_()
        out = block.gn3(wide(inside)).add_(block.gn_proj(project(stem))).relu_()
        return net.embedding(out.permute(0, 2, 3, 1).flatten(1))


class Layer(nn.Module):
    """A layer of pyiqa's transformer."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer, attention = layer, layer.attention
        self.heads = attention.num_heads
        parts = (attention.query, attention.key, attention.value)
        self.weight = nn.Buffer(torch.cat([part.weight for part in parts]).detach(), persistent=False)
        self.bias = nn.Buffer(torch.cat([part.bias for part in parts]).detach(), persistent=False)

    def forward(self, tokens: Float[Tensor, "n k dim"], others: Float[Tensor, "n m dim"]) -> Float[Tensor, "n k dim"]:
        """Tokens after attending to others, the first of which they are."""
        layer, kept = self.layer, tokens.shape[1]
        parts = F.linear(layer.norm1(others), self.weight, self.bias).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(parts[0, :, :, :kept], parts[1], parts[2])
        tokens = tokens + layer.attention.out(mixed.transpose(1, 2).flatten(2))
        return tokens + layer.mlp.fc2(layer.mlp.act(layer.mlp.fc1(layer.norm2(tokens))))


def _standardised(conv: Any) -> FusedConv:
    """The convolution with the weights that the original computes for every picture; the caller pads where it needs padding."""
    weight = conv.weight.detach().double()
    weight = weight - weight.mean((1, 2, 3), keepdim=True)
    weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
    padding = 1 if conv.kernel_size == (3, 3) else 0
    plain = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, padding, bias=False)
    plain.weight.data = weight
    return FusedConv(plain)


def _hashed(count: int, grid: int) -> Int[Tensor, " count"]:
    """The cell of a grid that each of `count` rows or columns falls into."""
    return F.interpolate(torch.arange(float(grid)).view(1, 1, -1), count, mode="nearest").flatten().long()
