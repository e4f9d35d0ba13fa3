"""Block-diagonal linear layers (the recurrent weights of DreamerV3), fast on all CPUs like ``vwm.nn.linear``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vwm.nn.linear import onednn_product, use_onednn


class BlockLinear(nn.Module):
    """Linear layer in which each of g blocks of the output depends on one block of the input.

    Args:
        inputs: width of the input, divisible by ``blocks``.
        outputs: width of each output, divisible by ``blocks``.
        blocks: g.
        num_outputs: number of outputs (the gates of a recurrent unit), each with its own g blocks.

    Attributes:
        weight: [g, num_outputs outputs / g, inputs / g].
        bias: [num_outputs, outputs].

    Raises:
        ValueError: ``blocks`` does not divide the widths.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, num_outputs: int = 1) -> None:
        super().__init__()
        if inputs % blocks or outputs % blocks:
            raise ValueError(f"blocks={blocks} must divide inputs={inputs} and outputs={outputs}")
        self.num_outputs = num_outputs
        self.weight = nn.Parameter(torch.empty(blocks, num_outputs * outputs // blocks, inputs // blocks))
        self.bias = nn.Parameter(torch.zeros(num_outputs, outputs))
        nn.init.trunc_normal_(self.weight, std=(blocks / inputs) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[b, inputs] -> [b, num_outputs, outputs]."""
        x = x.unflatten(1, (len(self.weight), -1))
        y: Tensor = (
            _OneDNNBlockLinear.apply(x, self.weight) if use_onednn(x, self.weight) else _block_matmul(x, self.weight)
        )
        # [b, g, num_outputs, outputs / g] -> [b, num_outputs, outputs]
        return y.unflatten(2, (self.num_outputs, -1)).transpose(1, 2).flatten(2) + self.bias


def _block_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """[b, g, i] and [g, o, i] -> [b, g, o]."""
    return torch.bmm(x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)


class _OneDNNBlockLinear(torch.autograd.Function):
    """``_block_matmul`` and its gradients, computed by oneDNN block by block."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        # contiguous: for strided blocks oneDNN would compute the gradients a thousand times slower.
        x = x.transpose(0, 1).contiguous()
        ctx.save_for_backward(x, weight)
        return torch.stack([onednn_product(a, w) for a, w in zip(x, weight, strict=True)], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        x_needs_grad, weight_needs_grad = ctx.needs_input_grad
        blocks = [block.contiguous() for block in gradient.unbind(1)]
        x_grad = weight_grad = None
        if x_needs_grad:
            x_grad = torch.stack([onednn_product(d, w.t()) for d, w in zip(blocks, weight, strict=True)], dim=1)
        if weight_needs_grad:
            weight_grad = torch.stack([onednn_product(d.t(), a.t()) for d, a in zip(blocks, x, strict=True)])
        return x_grad, weight_grad
