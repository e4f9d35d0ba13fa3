"""The layers of TD-MPC2: matrices with LayerNorm and Mish, and latents that are bundles of simplices.

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
"""Of every weight at the start; biases are 0."""


def sim_norm(x: Tensor, simplex: int) -> Tensor:
    """A softmax over every ``simplex`` numbers in a row: [..., d] -> [..., d]."""
    if x.device.type != "cpu":
        return x.unflatten(-1, (-1, simplex)).softmax(-1).flatten(-2)
    if not torch.is_grad_enabled():
        return _sim_norm_columns(x, simplex)
    y: Tensor = _SimNormFunction.apply(x, simplex)
    return y


def _sim_norm_columns(x: Tensor, simplex: int) -> Tensor:
    return x.reshape(-1, simplex).t().contiguous().softmax(0).t().reshape(x.shape)


class _SimNormFunction(torch.autograd.Function):
    """On a CPU torch takes the softmax of short rows number by number; of long columns it is six times as quick."""

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
        passed = y * gradient
        along = passed.unflatten(-1, (-1, ctx.simplex)).sum(-1, keepdim=True)
        return passed.sub_((y.unflatten(-1, (-1, ctx.simplex)) * along).flatten(-2)), None


class NormedLinear(nn.Module):
    """Matrix, LayerNorm, then Mish or SimNorm; over one input or several.

    Each input has a matrix of its own, which is one matrix over all of them written in parts: a latent that many
    actions are tried at is multiplied once.

    Args:
        inputs: widths of the inputs.
        width: of the output.
        simplex: numbers a simplex, where the layer ends in SimNorm; 0 for Mish.
    """

    def __init__(self, inputs: Sequence[int], width: int, simplex: int = 0) -> None:
        super().__init__()
        if simplex and width % simplex:
            raise ValueError(f"latents of {width} numbers do not divide into simplices of {simplex}")
        self.parts = nn.ModuleList(make_tdmpc2_linear(size, width, bias=i == 0) for i, size in enumerate(inputs))
        self.norm = nn.LayerNorm(width)
        self.simplex = simplex

    def forward(self, *inputs: Tensor) -> Tensor:
        """[..., size] each, which may broadcast -> [..., width]."""
        parts = [part(given) for part, given in zip(self.parts, inputs, strict=True)]
        x = self.norm(sum(parts[1:], parts[0]))
        return sim_norm(x, self.simplex) if self.simplex else mish(x)


class TDMPC2MLP(nn.Module):
    """Layers of which the last is a plain matrix, or ends in SimNorm.

    Args:
        inputs: widths of the inputs.
        hidden: widths of the layers between.
        outputs: width of the output.
        simplex: numbers a simplex of the output; 0 for a plain matrix.
    """

    def __init__(self, inputs: Sequence[int], hidden: Sequence[int], outputs: int, simplex: int = 0) -> None:
        super().__init__()
        sizes = [*hidden, outputs] if simplex else hidden
        layers = [NormedLinear(inputs, sizes[0], simplex * (len(sizes) == 1))]
        for i, (narrow, wide) in enumerate(pairwise(sizes)):
            layers.append(NormedLinear([narrow], wide, simplex * (i == len(sizes) - 2)))
        self.layers = nn.ModuleList(layers)
        self.output = None if simplex else make_tdmpc2_linear(hidden[-1], outputs)

    def forward(self, *inputs: Tensor) -> Tensor:
        """[..., size] each, which may broadcast -> [..., outputs]."""
        x = inputs
        for layer in self.layers:
            x = (layer(*x),)
        return x[0] if self.output is None else self.output(x[0])


def make_tdmpc2_linear(inputs: int, outputs: int, bias: bool = True) -> OneDNNLinear:
    """A matrix as TD-MPC2 begins with it."""
    made = OneDNNLinear(inputs, outputs, bias)
    nn.init.trunc_normal_(made.weight, std=TDMPC2_INIT_STD)
    if bias:
        nn.init.zeros_(made.bias)
    return made
