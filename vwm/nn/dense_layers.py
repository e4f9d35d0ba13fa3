"""The layers that all networks of a latent world are made of: matrices, a norm, an activation.

PlaNet and Dreamer v1 use ELU or ReLU alone, DreamerV2 normalises its recurrent cell, DreamerV3 every layer. The weights
begin as theirs do: Glorot's uniform distribution (Keras' default), with RMSNorm a truncated normal one over the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.nn.linear import OneDNNLinear
from vwm.nn.norm import RMSNorm

NormType = Literal["none", "layer", "rms"]
ActivationType = Literal["elu", "relu", "silu"]


class MultiInputDense(nn.Module):
    """Matrix, norm, activation; over one input or several.

    Each input has a matrix of its own, which is one matrix over all of them written in parts: what does not recur can
    be multiplied for all moments of a sequence at once (``part``), outside the loop over time.

    Args:
        inputs: widths of the inputs.
        width: of the output.
        norm, activation: see above.
    """

    def __init__(
        self, inputs: Sequence[int], width: int, norm: NormType = "none", activation: ActivationType = "elu"
    ) -> None:
        super().__init__()
        parts = [OneDNNLinear(size, width, bias=i == 0) for i, size in enumerate(inputs)]
        for part in parts:
            init_dense_weight(part.weight, sum(inputs), width, norm)
        nn.init.zeros_(parts[0].bias)
        self.parts = nn.ModuleList(parts)
        self.norm = make_norm_layer(norm, width)
        self.activation = activation

    def part(self, i: int, x: Tensor) -> Tensor:
        """What input i brings to the sum: [..., inputs[i]] -> [..., width]."""
        product: Tensor = self.parts[i](x)
        return product

    def finish(self, x: Tensor) -> Tensor:
        """From the sum of the parts to the output."""
        return apply_activation(self.norm(x), self.activation)

    def forward(self, *inputs: Tensor) -> Tensor:
        """[..., size] each -> [..., width]."""
        x = self.part(0, inputs[0])
        for i, more in enumerate(inputs[1:], 1):
            x = x + self.part(i, more)
        return self.finish(x)


def make_dense_mlp(inputs: int, width: int, layers: int, norm: NormType, activation: ActivationType) -> nn.Sequential:
    """``layers`` layers of one width; none are the identity."""
    sizes = [inputs, *[width] * layers]
    return nn.Sequential(*(MultiInputDense([a], b, norm, activation) for a, b in pairwise(sizes)))


def make_output_layer(inputs: int, outputs: int, norm: NormType, scale: float = 1.0) -> OneDNNLinear:
    """The matrix that ends a network; with ``scale`` 0 it says 0 at first."""
    linear = OneDNNLinear(inputs, outputs)
    init_dense_weight(linear.weight, inputs, outputs, norm, scale)
    nn.init.zeros_(linear.bias)
    return linear


def make_norm_layer(norm: NormType, width: int) -> nn.Module:
    """Over the last dimension. Raises ValueError for a norm that is not known."""
    if norm == "none":
        return nn.Identity()
    if norm == "layer":
        return nn.LayerNorm(width, eps=1e-3)
    if norm == "rms":
        return RMSNorm(width)
    raise ValueError(f"norm={norm!r} is none of 'none', 'layer', 'rms'")


def apply_activation(x: Tensor, activation: ActivationType) -> Tensor:
    """The activation of every number. Raises ValueError for one that is not known."""
    if activation == "elu":
        return F.elu(x)
    if activation == "relu":
        return F.relu(x)
    if activation == "silu":
        return F.silu(x)
    raise ValueError(f"activation={activation!r} is none of 'elu', 'relu', 'silu'")


@torch.no_grad()
def init_dense_weight(weight: Tensor, fan_in: int, fan_out: int, norm: NormType, scale: float = 1.0) -> None:
    """Draw a weight: with RMSNorm truncated normal of variance 1 / fan_in, else Glorot's uniform."""
    if norm == "rms":
        # A normal distribution cut at two deviations has 0.8796 of its deviation left.
        std = math.sqrt(1 / fan_in) / 0.87962566
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
    else:
        reach = math.sqrt(6 / (fan_in + fan_out))
        nn.init.uniform_(weight, -reach, reach)
    weight.mul_(scale)
