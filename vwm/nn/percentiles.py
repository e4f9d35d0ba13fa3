"""Percentiles of tensors without waiting for the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def percentiles(numbers: Tensor, *shares: float) -> Tensor:
    """Return the numbers below which given shares of them lie, interpolated linearly, [len(shares)].

    ``torch.quantile`` would take at most 2**24 numbers, and the shares from the CPU.

    Args:
        numbers: of any shape.
        shares: in 0..1.
    """
    ordered = numbers.flatten().sort().values
    found = []
    for share in shares:
        position = share * (len(ordered) - 1)
        low = math.floor(position)
        high = min(low + 1, len(ordered) - 1)
        found.append(torch.lerp(ordered[low], ordered[high], position - low))
    return torch.stack(found)
