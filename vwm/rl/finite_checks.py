"""Numbers of an update, looked at before any weight is moved by them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def require_finite(numbers: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Losses and what is logged beside them as plain numbers, waiting for the device once.

    Args:
        numbers: tensors [] on one device, or plain numbers.

    Raises:
        FloatingPointError: some are not finite; weights that were not moved yet are still sound.
    """
    if not numbers:
        return {}
    device = next((x.device for x in numbers.values() if isinstance(x, Tensor)), None)
    values = [torch.as_tensor(x, device=device).detach().double() for x in numbers.values()]
    plain = dict(zip(numbers, torch.stack(values).tolist(), strict=True))
    broken = {name: value for name, value in plain.items() if not math.isfinite(value)}
    if broken:
        said = ", ".join(f"{name} is {value}" for name, value in broken.items())
        raise FloatingPointError(f"{said}: nothing was learned from this batch; lower the learning rate")
    return plain
