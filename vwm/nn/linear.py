"""Linear layers that are quick on every CPU.

torch multiplies float32 matrices with MKL, which leaves AVX-512 unused on processors that are not Intel's: on an EPYC
(Zen 5) 100 billion operations a second and core, where oneDNN, which torch ships too, makes 210.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class OneDNNLinear(nn.Linear):
    """``nn.Linear``, by oneDNN where that is possible: float32 on a CPU. Its gradients have no gradients there."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., e]."""
        return onednn_linear(x, self.weight, self.bias)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``: [..., d], [e, d] and [e] -> [..., e]."""
    if not HAS_ONEDNN or torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight, bias)
    if not x.device.type == weight.device.type == "cpu" or not x.dtype == weight.dtype == torch.float32:
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled():  # small matrices feel what a step of autograd costs
        return _product(x, weight, bias)
    product: Tensor = _OneDNNLinearFunction.apply(x, weight, bias)
    return product


class _OneDNNLinearFunction(torch.autograd.Function):
    """x weight^T + bias, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            _product(gradient, weight.t()) if of_x else None,
            # Columns of a wider tensor would be multiplied by oneDNN's slowest way, a thousand times slower.
            _product(rows.t(), x.flatten(0, -2).contiguous().t()) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return product
