"""Block-diagonal matrices (the large recurrent ones of DreamerV3), quick on every CPU as ``vwm.nn.linear`` is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vwm.nn.linear import HAS_ONEDNN


class BlockLinear(nn.Module):
    """Each of g blocks of an output sees its own block of the input, and nothing else.

    Args:
        inputs: width of the input, which ``blocks`` divides.
        outputs: width of each output, likewise.
        blocks: g.
        parts: number of outputs, each a whole vector with its g blocks (the gates of a recurrent unit).

    Attributes:
        weight: [g, parts outputs / g, inputs / g].
        bias: [parts, outputs].

    Raises:
        ValueError: widths that the blocks do not divide.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, parts: int = 1) -> None:
        super().__init__()
        if inputs % blocks or outputs % blocks:
            raise ValueError(f"blocks={blocks} must divide inputs={inputs} and outputs={outputs}")
        self.parts = parts
        self.weight = nn.Parameter(torch.empty(blocks, parts * outputs // blocks, inputs // blocks))
        self.bias = nn.Parameter(torch.zeros(parts, outputs))
        nn.init.trunc_normal_(self.weight, std=(blocks / inputs) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[b, inputs] -> [b, parts, outputs]."""
        x = x.unflatten(1, (len(self.weight), -1))
        y: Tensor = (
            _OneDNNBlockLinear.apply(x, self.weight) if _use_onednn(x, self.weight) else _block_matmul(x, self.weight)
        )
        # [b, g, parts, outputs / g] -> [b, parts, outputs]
        return y.unflatten(2, (self.parts, -1)).transpose(1, 2).flatten(2) + self.bias


def _use_onednn(x: Tensor, weight: Tensor) -> bool:
    if not HAS_ONEDNN or torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return False
    return x.device.type == weight.device.type == "cpu" and x.dtype == weight.dtype == torch.float32


def _block_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """[b, g, i] and [g, o, i] -> [b, g, o]."""
    return torch.bmm(x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)


class _OneDNNBlockLinear(torch.autograd.Function):
    """The same block by block, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        # Blocks that lie apart in memory would have their gradients by oneDNN's slowest way, a thousand times slower.
        x = x.transpose(0, 1).contiguous()
        ctx.save_for_backward(x, weight)
        return torch.stack([_product(a, w) for a, w in zip(x, weight, strict=True)], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight = ctx.needs_input_grad
        blocks = [block.contiguous() for block in gradient.unbind(1)]
        return (
            torch.stack([_product(d, w.t()) for d, w in zip(blocks, weight, strict=True)], dim=1) if of_x else None,
            torch.stack([_product(d.t(), a.t()) for d, a in zip(blocks, x, strict=True)]) if of_weight else None,
        )


def _product(x: Tensor, weight: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return product
