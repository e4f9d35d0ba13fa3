"""Linear layers that are fast on all CPUs.

torch multiplies float32 matrices with MKL, which does not use AVX-512 on non-Intel processors. On an EPYC (Zen 5) it
reaches 100 GFLOP/s per core, and oneDNN, which torch also ships, 210.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class OneDNNLinear(nn.Linear):
    """``nn.Linear`` that uses oneDNN for float32 on a CPU. There it is differentiable only once."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., e]."""
        return onednn_linear(x, self.weight, self.bias)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``: [..., d], [e, d] and [e] -> [..., e]."""
    if not use_onednn(x, weight):
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled():  # saves the overhead of autograd
        return onednn_product(x, weight, bias)
    product: Tensor = _OneDNNLinearFunction.apply(x, weight, bias)
    return product


def use_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN can multiply these: float32 on a CPU, neither compiled nor under autocast."""
    if not HAS_ONEDNN or torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return False
    return x.device.type == weight.device.type == "cpu" and x.dtype == weight.dtype == torch.float32


class _OneDNNLinearFunction(torch.autograd.Function):
    """x weight^T + bias and its gradients, computed by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn_product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        x_needs_grad, weight_needs_grad, bias_needs_grad = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            onednn_product(gradient, weight.t()) if x_needs_grad else None,
            # contiguous: for a slice of a wider tensor oneDNN would use a kernel that is a thousand times slower.
            onednn_product(rows.t(), x.flatten(0, -2).contiguous().t()) if weight_needs_grad else None,
            rows.sum(0) if bias_needs_grad else None,
        )


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias by oneDNN, without autograd."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return product
