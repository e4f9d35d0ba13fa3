"""Root-mean-square normalisation (arXiv 1910.07467)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RMS_NORM_EPSILON = 1e-6


class RMSNorm(nn.Module):
    """x / rms(x), times a weight a channel; over the last dimension.

    Args:
        width: of the last dimension.
        weighted: whether there is a weight.
    """

    def __init__(self, width: int, weighted: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if weighted else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width], of the type that x has."""
        if x.device.type != "cpu":
            weight = None if self.weight is None else self.weight.to(x.dtype)
            return F.rms_norm(x, x.shape[-1:], weight, RMS_NORM_EPSILON)
        y = _RMSNormFunction.apply(x)
        return y if self.weight is None else y * self.weight.to(y.dtype)


class _RMSNormFunction(torch.autograd.Function):
    """On a CPU torch has no kernel for this, and differentiates the formula step by step: four times the work."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_compute_dtype(x)).square()
        inverse = (inverse / x.shape[-1] + RMS_NORM_EPSILON).rsqrt().to(x.dtype)
        y = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        y, inverse = ctx.saved_tensors
        along = (grad * y).mean(dim=-1, keepdim=True)
        return torch.addcmul(grad, y, along.expand_as(y), value=-1).mul_(inverse)


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
