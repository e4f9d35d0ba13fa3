"""Normalize losses of different magnitude by their running root mean square (Dreamer 4, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vwm.nn.ranks import mean_over_ranks


class LossNormalizer(nn.Module):
    """Divide a loss by its running RMS, through which no gradient flows.

    Args:
        decay: decay of the running mean square, which is bias-corrected as in Adam.
    """

    mean_square: Tensor
    weight: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean_square", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))

    def forward(self, loss: Tensor) -> Tensor:
        """Scalar loss -> normalized loss. The statistics, of all processes' losses, are updated in training only."""
        mean = mean_over_ranks(loss) if self.training else loss
        if self.training and (mean.is_meta or bool(torch.isfinite(mean))):  # a NaN would stay in the statistics
            with torch.no_grad():
                self.mean_square.lerp_(mean.to(self.mean_square.dtype).square(), 1 - self.decay)
                self.weight.lerp_(torch.ones_like(self.weight), 1 - self.decay)
        if not self.weight.is_meta and not self.weight:  # no loss seen yet
            return loss
        return loss / (self.mean_square / self.weight).sqrt().clamp(min=1e-8)
