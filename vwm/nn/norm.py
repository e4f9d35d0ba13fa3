"""Root mean square normalization (arXiv 1910.07467)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.nn.kernel_device import kernel_device

RMS_NORM_EPSILON = 1e-6


class RMSNorm(nn.Module):
    """RMS normalization over the last dimension: x / rms(x), times a weight per channel.

    Args:
        width: size of the last dimension.
        elementwise_affine: learn a weight per channel.
    """

    def __init__(self, width: int, elementwise_affine: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if elementwise_affine else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width], with the dtype of x."""
        if kernel_device(x) != "cpu":
            weight = None if self.weight is None else self.weight.to(x.dtype)
            return F.rms_norm(x, x.shape[-1:], weight, RMS_NORM_EPSILON)
        y = _RMSNormFunction.apply(x) if torch.is_grad_enabled() else _normalize(x)[0]
        return y if self.weight is None else y * self.weight.to(y.dtype)


def _normalize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x / rms(x), and 1 / rms(x)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype).square()
    inverse = (inverse / x.shape[-1] + RMS_NORM_EPSILON).rsqrt().to(x.dtype)
    return x * inverse, inverse


class _RMSNormFunction(torch.autograd.Function):
    """RMS normalization with its own backward pass: on a CPU torch's autograd takes four times as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y, inverse = _normalize(x)
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        y, inverse = ctx.saved_tensors
        projection = (grad * y).mean(dim=-1, keepdim=True)
        return torch.addcmul(grad, y, projection.expand_as(y), value=-1).mul_(inverse)
