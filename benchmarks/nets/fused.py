"""Convolutions for inference on a CPU: batch normalisation folded into the weights, bias and activation done inside the convolution.

Folding is exact but for rounding (done in float64). oneDNN's fused convolution is what torch's own compiler calls; it is used directly,
because compiling would take longer than most runs. Where this torch lacks it, the same is computed by plain calls.
"""

from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Activation = Literal["none", "relu", "gelu", "sigmoid"]
ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu, "sigmoid": torch.sigmoid}


class FusedConv(nn.Module):
    """A convolution with its batch normalisation and its activation.

    Args:
        conv: gives weights, padding (zeros), stride, dilation and groups.
        norm: its running statistics are folded in.
        activation: applied to the result.
        scale: multiplies what comes before the activation.
    """

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
        reorder = _reorder()
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
