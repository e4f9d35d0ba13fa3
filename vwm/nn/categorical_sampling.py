"""Draw from categorical distributions with given random numbers.

Legend: k weights.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def inverse_transform(weights: Tensor, noise: Tensor) -> Tensor:
    """Draw indices in proportion to weights: [..., k], noise [...] between 0 and 1 -> int64 [...].

    Sums of blocks of about sqrt(k) weights tell the block, and the sums within it the index, so that the weights are
    read once and nothing of their size is written.
    """
    size = math.isqrt(weights.shape[-1] - 1) + 1
    blocks = F.pad(weights, (0, -weights.shape[-1] % size)).unflatten(-1, (-1, size))
    sums = blocks.sum(-1).cumsum(-1)
    target = noise[..., None] * sums[..., -1:]
    block = _first_reaching(sums, target)
    within = blocks.gather(-2, block[..., None].expand(*block.shape, size)).squeeze(-2).cumsum(-1)
    target = target - F.pad(sums, (1, 0)).gather(-1, block)
    return (block * size + _first_reaching(within, target)).squeeze(-1)


def _first_reaching(sums: Tensor, target: Tensor) -> Tensor:
    """Index of the first of growing sums [..., m] that reaches a target [..., 1]; of the last growth if none does."""
    return (sums < torch.minimum(target, sums[..., -1:])).sum(-1, keepdim=True)
