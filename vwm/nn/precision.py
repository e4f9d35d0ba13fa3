"""Numerical precision of computations that are sensitive to rounding."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half-precision tensors to float32; return others unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
