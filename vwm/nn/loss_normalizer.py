"""Losses of different size on one scale: each divided by its running root mean square (Dreamer 4, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LossNormalizer(nn.Module):
    """Divides a loss by its running RMS, which is no part of the gradient.

    Args:
        decay: of the running mean; early steps count for more, so that it starts at the first loss.
    """

    mean_square: Tensor
    weight: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean_square", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))

    def forward(self, loss: Tensor) -> Tensor:
        """A scalar loss -> the loss on the common scale."""
        if self.training and bool(torch.isfinite(loss)):  # one broken batch must not break the scale for good
            with torch.no_grad():
                self.mean_square.lerp_(loss.detach().float().square(), 1 - self.decay)
                self.weight.lerp_(torch.ones_like(self.weight), 1 - self.decay)
        if not self.weight:  # nothing seen yet
            return loss
        return loss / (self.mean_square / self.weight).sqrt().clamp(min=1e-8)
