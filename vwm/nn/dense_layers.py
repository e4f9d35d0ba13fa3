"""Dense layers shared by the RSSM networks and the actor-critic: linear layer, normalization, activation.

PlaNet and Dreamer v1 use ELU or ReLU without normalization, DreamerV2 normalizes its recurrent cell, DreamerV3 every
layer. Weights are initialized as in the published code: Glorot uniform (the default of Keras), or, with RMSNorm, a
truncated normal distribution scaled by the fan-in.
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
    """Dense layer over one or several inputs: linear projections, their sum, normalization, activation.

    Each input has its own weight matrix; together they are the columns of one matrix over the concatenated inputs.
    An input that does not depend on the recurrent state can thus be projected for all time steps at once
    (``project_input``), outside the loop over time.

    Args:
        input_sizes: Sizes of the inputs.
        width: Size of the output.
        norm: Normalization over the output.
        activation: Activation function.
    """

    def __init__(
        self, input_sizes: Sequence[int], width: int, norm: NormType = "none", activation: ActivationType = "elu"
    ) -> None:
        super().__init__()
        projections = [OneDNNLinear(size, width, bias=i == 0) for i, size in enumerate(input_sizes)]
        for projection in projections:
            init_dense_weight(projection.weight, sum(input_sizes), width, norm)
        nn.init.zeros_(projections[0].bias)
        self.input_projections = nn.ModuleList(projections)
        self.norm = make_norm_layer(norm, width)
        self.activation = activation

    def project_input(self, index: int, x: Tensor) -> Tensor:
        """Return the projection of one input: [..., input_sizes[index]] -> [..., width]."""
        projected: Tensor = self.input_projections[index](x)
        return projected

    def norm_and_activate(self, x: Tensor) -> Tensor:
        """Map the sum of the projections [..., width] to the output [..., width]."""
        return apply_activation(self.norm(x), self.activation)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map one tensor [..., size] per input to [..., width]."""
        x = self.project_input(0, inputs[0])
        for index, more in enumerate(inputs[1:], 1):
            x = x + self.project_input(index, more)
        return self.norm_and_activate(x)


def make_dense_mlp(
    input_size: int, width: int, layers: int, norm: NormType, activation: ActivationType
) -> nn.Sequential:
    """Return ``layers`` dense layers of one width; 0 layers are the identity."""
    sizes = [input_size, *[width] * layers]
    return nn.Sequential(*(MultiInputDense([a], width=b, norm=norm, activation=activation) for a, b in pairwise(sizes)))


def make_output_layer(input_size: int, output_size: int, norm: NormType, scale: float = 1.0) -> OneDNNLinear:
    """Return the last linear layer of a network, its initial weights times ``scale`` (0: the initial output is 0)."""
    linear = OneDNNLinear(input_size, output_size)
    init_dense_weight(linear.weight, input_size, output_size, norm, scale)
    nn.init.zeros_(linear.bias)
    return linear


def make_norm_layer(norm: NormType, width: int) -> nn.Module:
    """Return a normalization over the last dimension. Raises ValueError for an unknown ``norm``."""
    if norm == "none":
        return nn.Identity()
    if norm == "layer":
        return nn.LayerNorm(width, eps=1e-3)
    if norm == "rms":
        return RMSNorm(width)
    raise ValueError(f"norm={norm!r} must be 'none', 'layer' or 'rms'")


def apply_activation(x: Tensor, activation: ActivationType) -> Tensor:
    """Apply an activation function elementwise. Raises ValueError for an unknown ``activation``."""
    if activation == "elu":
        return F.elu(x)
    if activation == "relu":
        return F.relu(x)
    if activation == "silu":
        return F.silu(x)
    raise ValueError(f"activation={activation!r} must be 'elu', 'relu' or 'silu'")


@torch.no_grad()
def init_dense_weight(weight: Tensor, fan_in: int, fan_out: int, norm: NormType, scale: float = 1.0) -> None:
    """Initialize a weight in place: with RMSNorm truncated normal of variance 1 / fan_in, else Glorot uniform."""
    if norm == "rms":
        # Truncation at two standard deviations leaves 0.8796 of the standard deviation.
        std = math.sqrt(1 / fan_in) / 0.87962566
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
    else:
        bound = math.sqrt(6 / (fan_in + fan_out))
        nn.init.uniform_(weight, -bound, bound)
    weight.mul_(scale)
