"""Codes that are chosen by classification: the most likely one, with the gradient of the softmax (straight-through).

Against a nearest-neighbor codebook: the choice has logits of its own, which labels can train.

Legend: d width, k number of codes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vwm.nn.precision import at_least_float32
from vwm.nn.quantize import QuantizerOutput, codebook_size
from vwm.nn.ranks import mean_over_ranks_with_gradient


class CategoricalCodebook(nn.Module):
    """Classify and look up the code of the class.

    Args:
        width: d, width of inputs and codes.
        size: k.
        balance_weight: weight of how far the mean probabilities of a global batch are from equal, in nats; without it,
            a few codes can take over.

    Raises:
        ValueError: fewer than two codes.
    """

    def __init__(self, width: int, size: int, balance_weight: float = 0.01) -> None:
        super().__init__()
        self.size = codebook_size(size)
        self.balance_weight = balance_weight
        self.logits = nn.Linear(width, size)
        self.codes = nn.Embedding(size, width)

    def forward(self, x: Tensor) -> QuantizerOutput:
        """[..., d] -> codes [..., d], indices int64 [...], and the loss of unbalanced codes; in at least float32."""
        with torch.autocast(x.device.type, enabled=False):
            p = self.scores(x).softmax(-1)
            indices = p.argmax(-1)
            chosen = F.one_hot(indices, self.size).to(p.dtype) + p - p.detach()
            mean = mean_over_ranks_with_gradient(p.flatten(0, -2).mean(0))
            loss = self.balance_weight * (math.log(self.size) - torch.special.entr(mean).sum())
            return QuantizerOutput(chosen @ self.codes.weight.to(p.dtype), indices, loss)

    def scores(self, x: Tensor) -> Tensor:
        """Return the logits of the codes: [..., d] -> [..., k]."""
        with torch.autocast(x.device.type, enabled=False):
            scores: Tensor = self.logits(at_least_float32(x).to(self.logits.weight.dtype))
            return scores

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes of indices: int64 [...] -> [..., d]."""
        codes: Tensor = self.codes(indices)
        return codes
