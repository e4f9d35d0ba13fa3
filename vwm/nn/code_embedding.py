"""Embeddings and output weights of FSQ codes that share a part between codes of one level.

A code of FSQ (arXiv 2309.15505) is one level in each of a few dimensions. The weight of a code is the sum of one of its
own and one for its level in each dimension, so that rare codes are learned from frequent ones that resemble them. (The
token factorization of MAGVIT-v2, arXiv 2310.05737, but with one softmax over all codes.)

Legend: k codes, d width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CodeEmbedding(nn.Embedding):
    """Embed codes 0..k-1, and the mask token k: int64 [...] -> [..., d].

    Args:
        levels: see ``level_indices``.
        width: d.
    """

    def __init__(self, levels: Sequence[int], width: int) -> None:
        super().__init__(math.prod(levels) + 1, width)
        self.levels = tuple(levels)
        self.level_weight = nn.Parameter(torch.empty(sum(levels), width).normal_(std=0.02))

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        indices = level_indices(tokens.clamp(max=self.num_embeddings - 2), self.levels)
        shared = F.embedding(indices, self.level_weight).sum(dim=-2)
        return super().forward(tokens) + shared * (tokens < self.num_embeddings - 1)[..., None]


class CodeLogits(nn.Linear):
    """Predict the logits of all codes: [..., d] -> [..., k].

    Args:
        levels: see ``level_indices``.
        width: d.
    """

    def __init__(self, levels: Sequence[int], width: int) -> None:
        super().__init__(width, math.prod(levels))
        self.levels = tuple(levels)
        self.level_weight = nn.Parameter(torch.empty(sum(levels), width).normal_(std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        indices = level_indices(torch.arange(self.out_features, device=x.device), self.levels)
        return F.linear(x, self.weight + F.embedding(indices, self.level_weight).sum(dim=-2), self.bias)


def level_indices(codes: Tensor, levels: Sequence[int]) -> Tensor:
    """Return for each code its level in each dimension, as rows of one table of all levels: [...] -> [..., dimensions].

    Args:
        codes: int64, indices of an FSQ codebook.
        levels: the number of levels of each dimension; the first one varies fastest with the index, as in
            vector-quantize-pytorch.
    """
    rows, stride, start = [], 1, 0
    for count in levels:
        rows.append(codes // stride % count + start)
        stride *= count
        start += count
    return torch.stack(rows, dim=-1)
