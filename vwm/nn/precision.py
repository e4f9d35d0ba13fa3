"""Numerical precision of computations that are sensitive to rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half-precision tensors to float32; return others unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def matmul_dtype(x: Tensor) -> torch.dtype:
    """Type of the matrix products of x: the one that autocast converts to, inside of autocast."""
    device = x.device.type
    is_converted = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if is_converted else x.dtype


class BinsModule(nn.Module):
    """A module whose buffer ``values``, [bins], stays at least float32 where the module is cast to half precision.

    Bins are numbers that results are computed from, and bfloat16 would round them to 8 bits.
    """

    values: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        values = self.values
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if torch.finfo(self.values.dtype).bits < 32:
            self.values = values.to(self.values.device)
        return self
