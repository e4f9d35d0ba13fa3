"""Numerical precision of computations that are sensitive to rounding."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half-precision tensors to float32; return others unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def matmul_dtype(x: Tensor) -> torch.dtype:
    """Type of the matrix products of x: the one that autocast converts to, inside of autocast."""
    device = x.device.type
    is_converted = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if is_converted else x.dtype
