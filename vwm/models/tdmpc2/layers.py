"""Layers of TD-MPC2: linear layers with LayerNorm and Mish, and simplicial normalization of latents (SimNorm).

Hansen et al.: TD-MPC2, 2024 (arXiv 2310.16828), section 3.1 and appendix H; SimNorm after Lavoie et al. 2023 (arXiv
2204.00616).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from vwm.nn.linear import OneDNNLinear
from vwm.nn.mish import mish

TDMPC2_INIT_STD = 0.02
"""Standard deviation of the initial weights; biases are 0."""


def sim_norm(x: Tensor, simplex: int) -> Tensor:
    """Apply softmax to each group of ``simplex`` consecutive numbers (SimNorm): [..., d] -> [..., d]."""
    if x.device.type != "cpu":
        return x.unflatten(-1, (-1, simplex)).softmax(-1).flatten(-2)
    if not torch.is_grad_enabled():
        return _sim_norm_columns(x, simplex)
    y: Tensor = _SimNormFunction.apply(x, simplex)
    return y


def _sim_norm_columns(x: Tensor, simplex: int) -> Tensor:
    return x.reshape(-1, simplex).t().contiguous().softmax(0).t().reshape(x.shape)


class _SimNormFunction(torch.autograd.Function):
    """SimNorm on a CPU, where torch's softmax over columns is six times faster than over short rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, simplex: int) -> Tensor:
        y = _sim_norm_columns(x, simplex)
        ctx.save_for_backward(y)
        ctx.simplex = simplex
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        product = y * gradient
        projection = product.unflatten(-1, (-1, ctx.simplex)).sum(-1, keepdim=True)
        return product.sub_((y.unflatten(-1, (-1, ctx.simplex)) * projection).flatten(-2)), None


class NormedLinear(nn.Module):
    """Linear layer, LayerNorm, then Mish or SimNorm, over one or several inputs.

    Each input has its own weight matrix; together they are one matrix over the concatenated inputs. Inputs may
    broadcast: a latent that is combined with many actions is projected once.

    Args:
        input_sizes: Sizes of the inputs.
        width: Size of the output.
        simplex: Numbers per simplex of SimNorm; 0 applies Mish instead.

    Raises:
        ValueError: ``simplex`` does not divide ``width``.
    """

    def __init__(self, input_sizes: Sequence[int], width: int, simplex: int = 0) -> None:
        super().__init__()
        if simplex and width % simplex:
            raise ValueError(f"the size {width} must be divisible by simplex={simplex}")
        projections = (make_tdmpc2_linear(size, width, bias=i == 0) for i, size in enumerate(input_sizes))
        self.input_projections = nn.ModuleList(projections)
        self.norm = nn.LayerNorm(width)
        self.simplex = simplex

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map inputs [..., size], which may broadcast, to [..., width]."""
        projected = [projection(x) for projection, x in zip(self.input_projections, inputs, strict=True)]
        x = self.norm(sum(projected[1:], projected[0]))
        return sim_norm(x, self.simplex) if self.simplex else mish(x)


class TDMPC2MLP(nn.Module):
    """MLP whose output layer is linear or ends in SimNorm.

    Args:
        input_sizes: Sizes of the inputs.
        hidden_widths: Widths of the hidden layers.
        output_size: Size of the output.
        simplex: Numbers per simplex of the output; 0 for a linear output layer.
    """

    def __init__(
        self, input_sizes: Sequence[int], hidden_widths: Sequence[int], output_size: int, simplex: int = 0
    ) -> None:
        super().__init__()
        sizes = [*hidden_widths, output_size] if simplex else hidden_widths
        layers = [NormedLinear(input_sizes, sizes[0], simplex * (len(sizes) == 1))]
        for i, (in_width, out_width) in enumerate(pairwise(sizes)):
            layers.append(NormedLinear([in_width], out_width, simplex * (i == len(sizes) - 2)))
        self.layers = nn.ModuleList(layers)
        self.output = None if simplex else make_tdmpc2_linear(hidden_widths[-1], output_size)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map inputs [..., size], which may broadcast, to [..., output_size]."""
        x = inputs
        for layer in self.layers:
            x = (layer(*x),)
        return x[0] if self.output is None else self.output(x[0])


def make_tdmpc2_linear(input_size: int, output_size: int, bias: bool = True) -> OneDNNLinear:
    """Return a linear layer with TD-MPC2's initialization."""
    linear = OneDNNLinear(input_size, output_size, bias)
    nn.init.trunc_normal_(linear.weight, std=TDMPC2_INIT_STD)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
