"""The device that a command or a training computes on."""

from __future__ import annotations

import torch


def resolve_device(device: str | torch.device) -> torch.device:
    """Return a device by its name: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, ..."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)
