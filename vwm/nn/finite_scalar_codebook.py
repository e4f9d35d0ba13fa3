"""Finite scalar quantization (FSQ, arXiv 2309.15505): each dimension of a code is bounded and rounded to a few values.

Numbers and weights equal those of ``FSQ`` in vector-quantize-pytorch, whose import takes as long as that of torch: a
world with such a codebook starts without it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FiniteScalarCodebook(nn.Module):
    """Project to one dimension per level, quantize, and project back.

    Args:
        levels: number of values of each dimension, at least 2.
        width: d, width of inputs and outputs. Where it is the number of levels, nothing is projected.
    """

    levels: Tensor
    strides: Tensor
    codes: Tensor  # the values of every index, [k, number of levels]

    def __init__(self, levels: list[int], width: int) -> None:
        super().__init__()
        # Two levels have no middle level and need the symmetric form (arXiv 2411.19842, section 3.2).
        self.is_symmetric = 2 in levels
        self.project_in = nn.Linear(width, len(levels)) if width != len(levels) else nn.Identity()
        self.project_out = nn.Linear(len(levels), width) if width != len(levels) else nn.Identity()
        strides = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.int32), persistent=False)
        self.register_buffer("strides", torch.tensor(strides, dtype=torch.int32), persistent=False)
        self.register_buffer("codes", self._codes_of(torch.arange(math.prod(levels))), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[..., d] -> outputs [..., d] with a straight-through gradient, and their indices int32 [...]."""
        z = self.project_in(x)
        values = self._quantize(z if z.dtype == torch.float64 else z.float())
        indices = (self._level_indices(values) * self.strides).sum(-1).round().to(torch.int32)
        return self.project_out(values.to(z.dtype)), indices

    def lookup(self, indices: Tensor) -> Tensor:
        """Outputs of indices, in the dtype of the module: int64 [...] -> [..., d]."""
        return self.project_out(self.codes[indices])

    def _quantize(self, z: Tensor) -> Tensor:
        if self.is_symmetric:
            steps = self.levels - 1
            position = steps * (z.tanh() + 1) / 2.0 + 0.5
            return (2.0 / steps) * _straight_through(position, position.floor()) - 1.0
        half = (self.levels - 1) * (1 + 1e-3) / 2  # values at the bounds round to the outermost levels
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        bounded = (z + (offset / half).atanh()).tanh() * half - offset
        return _straight_through(bounded, bounded.round()) / (self.levels // 2)

    def _level_indices(self, values: Tensor) -> Tensor:
        if self.is_symmetric:
            return (values + 1.0) / (2.0 / (self.levels - 1))
        return values * (self.levels // 2) + self.levels // 2

    def _codes_of(self, indices: Tensor) -> Tensor:
        level_indices = (indices[:, None] // self.strides) % self.levels
        if self.is_symmetric:
            return level_indices * (2.0 / (self.levels - 1)) - 1.0
        return (level_indices - self.levels // 2) / (self.levels // 2)


def _straight_through(z: Tensor, rounded: Tensor) -> Tensor:
    """The rounded values, with the gradient of the values before rounding."""
    return z + (rounded - z).detach()
