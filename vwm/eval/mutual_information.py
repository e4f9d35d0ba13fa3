"""Mutual information of two labelings of the same transitions, in bits.

Legend: n transitions, r and c the numbers of labels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NUM_PERMUTATIONS = 100


class MutualInformation(NamedTuple):
    """Mutual information above chance, and the estimate for shuffled labels, in bits."""

    bits: float
    chance_bits: float


def contingency_table(a: Tensor, b: Tensor, rows: int, columns: int) -> Tensor:
    """Count each pair of labels: int64 [n] twice -> int64 [rows, columns]."""
    return torch.bincount(a * columns + b, minlength=rows * columns).view(rows, columns)


def histogram_entropy(counts: Tensor) -> Tensor:
    """Compute the entropy of a histogram of any shape, in bits."""
    p = counts.double() / counts.sum()
    return torch.special.entr(p).sum() / torch.log(torch.tensor(2.0, dtype=torch.float64))


def plugin_mutual_information(table: Tensor) -> Tensor:
    """Compute the plug-in estimate for a contingency table, in bits; it is biased upwards for few transitions."""
    return histogram_entropy(table.sum(dim=0)) + histogram_entropy(table.sum(dim=1)) - histogram_entropy(table)


def corrected_mutual_information(a: Tensor, b: Tensor, rows: int, columns: int, seed: int) -> MutualInformation:
    """Compute the mutual information of labels int64 [n] minus the bias of the estimate.

    The bias is the mean estimate over many shuffles of one side.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffles = (b[torch.randperm(len(b), generator=generator)] for _ in range(NUM_PERMUTATIONS))
    chance = torch.stack([plugin_mutual_information(contingency_table(a, s, rows, columns)) for s in shuffles]).mean()
    found = plugin_mutual_information(contingency_table(a, b, rows, columns))
    return MutualInformation(float(found - chance), float(chance))
