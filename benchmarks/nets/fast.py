"""pyiqa's nets with the same weights and the same values, computed in fewer operations: for inference on a CPU.

Batch normalisation is folded into the weights, exact but for rounding (done in float64); bias and activation are done inside the
convolution. oneDNN's fused convolution is what torch's own compiler calls; it is used directly, because compiling would take longer than
most runs. Where this torch lacks it, the same is computed by plain calls.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.transforms.functional import resize

Activation = Literal["none", "relu", "gelu", "sigmoid"]
ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu, "sigmoid": torch.sigmoid}


class FusedConv(nn.Module):
    """A convolution (zeros as padding) with its batch normalisation, whose running statistics are folded in, and its activation;
    `scale` multiplies what comes before the activation."""

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, norm: nn.Module | None = None, activation: Activation = "none", scale: float = 1.0) -> None:
        super().__init__()
        weight = conv.weight.detach().double()
        bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach().double()
        if norm is not None:
            mean, variance, gain, shift = (
                getattr(norm, name).detach().double() for name in ("running_mean", "running_var", "weight", "bias")
            )
            gain = gain / (variance + norm.eps).sqrt()
            weight, bias = weight * gain[:, None, None, None], (bias - mean) * gain + shift
        self.register_buffer("weight", (weight * scale).float().contiguous(memory_format=torch.channels_last), persistent=False)
        self.register_buffer("bias", (bias * scale).float(), persistent=False)
        assert not isinstance(conv.padding, str) and conv.padding_mode == "zeros"
        self.padding, self.stride, self.dilation, self.groups = list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups
        self.activation: Activation = activation
        self._packed: Tensor | None = None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d hh ww"]:
        reorder = _reorder() if x.device.type == "cpu" else None
        if reorder is None:
            out = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
            return ACTIVATIONS[self.activation](out)
        if self._packed is None:  # in the layout that suits pictures of this size; right, if slower, for any other
            shape = (self.padding, self.stride, self.dilation, self.groups, list(x.shape))
            self._packed = reorder(self.weight.to_mkldnn(), *shape)
        algorithm = "none" if self.activation == "gelu" else ""
        shape = (self.padding, self.stride, self.dilation, self.groups)
        return torch.ops.mkldnn._convolution_pointwise(x, self._packed, self.bias, *shape, self.activation, [], algorithm)


@cache
def _reorder() -> Callable[..., Tensor] | None:
    """Lays weights out for oneDNN, where this torch has its fused convolution."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")):
        return None
    return getattr(getattr(torch._C, "_nn", None), "mkldnn_reorder_conv2d_weight", None)


def fold(net: nn.Module) -> nn.Module:
    """Replace the convolutions of one of timm's nets that batch normalisation follows, in place.

    Known are the three ways in which timm's ResNet and Inception-ResNet write them: attributes convN, bnN and actN of one module; a
    sequence of the two; and convolutions whose result is added to their input after a scaling.
    """
    children = dict(net.named_children())
    for name, conv in children.items():
        if not isinstance(conv, nn.Conv2d):
            continue
        if name == "conv2d" and isinstance(getattr(net, "scale", None), float):
            net.conv2d, net.scale = FusedConv(conv, scale=net.scale), 1.0  # pyright: ignore[reportArgumentType]
            continue
        norm_name, act_name = ("1", "act1") if name == "0" else (name.replace("conv", "bn"), name.replace("conv", "act"))
        norm = children.get(norm_name)
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        # timm's BatchNormAct2d holds its activation; the third activation of a bottleneck comes after the sum
        inside = isinstance(getattr(norm, "act", None), nn.ReLU)
        after = isinstance(children.get(act_name), nn.ReLU) and name != "conv3"
        setattr(net, name, FusedConv(conv, norm, "relu" if inside or after else "none"))
        setattr(net, norm_name, nn.Identity())
        if after:
            setattr(net, act_name, nn.Identity())
    for child in net.children():
        if not isinstance(child, FusedConv):
            fold(child)
    return net


PATCHES = 128  # At once: their maps stay in a processor's cache


class FastMusiq(nn.Module):
    """Pictures to scores by pyiqa's MUSIQ `net`, in one piece; its parts are used.

    What is saved: weights are standardised once and not for every picture; patches that only fill a sequence up, which the original masks
    out, are not computed; queries, keys and values come from one product; in the last layer only the token that is read is computed.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        options = net.data_preprocess_opts
        assert options["max_seq_len_from_original_res"] == -1 and options["patch_stride"] == net.patch_size
        self.net, self.side, self.grid, self.lengths = net, net.patch_size, options["hse_grid_size"], sorted(options["longer_side_lengths"])
        self.root = _standardised(net.conv_root)
        block = net.block1
        self.convs = nn.ModuleList([_standardised(conv) for conv in (block.conv_proj, block.conv1, block.conv2, block.conv3)])
        self.layers = nn.ModuleList([MusiqLayer(layer) for layer in net.transformer_encoder.transformer.values()])

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
        return values if classes == 1 else values @ torch.arange(1.0, classes + 1)[:, None].to(values)

    def _tokens(self, pixels: Float[Tensor, "n 3 h w"], scale: int) -> Float[Tensor, "n k dim"]:
        """Embedded patches of one size of the pictures, with what tells their places and their scale."""
        net, side = self.net, self.side
        count, _, height, width = pixels.shape
        rows, columns = math.ceil(height / side), math.ceil(width / side)
        down, across = rows * side - height, columns * side - width
        pixels = F.pad(pixels, (across // 2, across - across // 2, down // 2, down - down // 2))
        parts = pixels.unflatten(3, (columns, side)).unflatten(2, (rows, side)).permute(0, 2, 4, 3, 5, 1)
        patches = F.pad(parts.flatten(0, 2), (0, 0, 2, 3, 2, 3)).permute(0, 3, 1, 2)  # channels last in memory; what "same" pads
        tokens = torch.cat([self._stem(part) for part in patches.split(PATCHES)]).unflatten(0, (count, rows * columns))
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


class MusiqLayer(nn.Module):
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
    """Pictures to scores by TOPIQ: pyiqa's CFANet `net` over a ResNet, without a reference, in one piece; its parts are changed and used.

    What is saved: batch normalisation and activations are part of the convolutions; of the two halves of the gates' first convolution, the
    one that only feeds another 1 x 1 convolution is multiplied into that one; attention does not form its weights.
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
        levels = net.semantic_model(((x - net.default_mean.to(x)) / net.default_std.to(x)).contiguous(memory_format=torch.channels_last))
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
                beside, start = layer.norm2(memory), layer.norm1(query)
                mixed = layer.multihead_attn(start, beside, beside, need_weights=False)[0]
                query = _fed(layer, query + mixed, layer.norm3)
        return net.score_linear(_attended(net.attn_pool, query).mean(0))


def _attended(layer: Any, tokens: Float[Tensor, "k n dim"]) -> Float[Tensor, "k n dim"]:
    """Tokens attending to each other."""
    start = layer.norm1(tokens)
    return _fed(layer, tokens + layer.self_attn(start, start, start, need_weights=False)[0], layer.norm2)


def _fed(layer: Any, tokens: Float[Tensor, "k n dim"], norm: nn.Module) -> Float[Tensor, "k n dim"]:
    return tokens + layer.linear2(layer.activation(layer.linear1(norm(tokens))))
