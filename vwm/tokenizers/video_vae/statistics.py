"""Statistics by which published video autoencoders normalize their latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def video_latent_statistics(settings: Mapping[str, Any], channels: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the latents, float32 [n, c] each, from the config of an autoencoder.

    n is 1, or the number of first latents that have statistics of their own (Cosmos); later ones use the last row.
    """
    mean, std = settings.get("latents_mean"), settings.get("latents_std")
    shift, scale = float(settings.get("shift_factor") or 0.0), float(settings.get("scaling_factor") or 1.0)
    if mean is None or std is None:
        return torch.full((1, channels), shift), torch.full((1, channels), 1 / scale)
    rows = [torch.tensor(values, dtype=torch.float32).view(channels, -1).T.contiguous() for values in (mean, std)]
    return rows[0], rows[1]
