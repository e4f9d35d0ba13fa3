"""Torch's own generators, of which agents draw: a part of every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def generators() -> dict[str, Any]:
    """Where the CPU's generator and every GPU's stand, as entries of a checkpoint."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"random": torch.get_rng_state(), "random_cuda": cuda}


def restore(checkpoint: Mapping[str, Any]) -> None:
    """Go on drawing where ``generators`` stood; of GPUs, with those that this machine has, too."""
    torch.set_rng_state(checkpoint["random"])
    for device, state in zip(range(torch.cuda.device_count()), checkpoint["random_cuda"], strict=False):
        torch.cuda.set_rng_state(state, device)
