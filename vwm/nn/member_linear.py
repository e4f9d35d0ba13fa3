"""A linear layer of several networks of the same shape, computed together."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class MemberLinear(nn.Module):
    """A linear layer of every member of an ensemble: [m, b, inputs] -> [m, b, outputs].

    Weights begin as truncated normals with a standard deviation of 1 / (2 sqrt(inputs)) (PETS, arXiv 1805.12114, the
    authors' code), biases as zeros.

    Args:
        members: m.
        inputs, outputs: sizes.
    """

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs))
        std = 1 / (2 * math.sqrt(inputs))
        nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)
        self.bias = nn.Parameter(torch.zeros(members, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map x [m, b, inputs], each member's own, to [m, b, outputs]."""
        return torch.baddbmm(self.bias, x, self.weight)
