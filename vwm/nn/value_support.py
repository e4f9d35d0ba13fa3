"""Represent scalars as distributions over bins evenly spaced on a transformed axis (arXiv 1911.08265, appendix F)."""

from __future__ import annotations

import torch
from torch import Tensor

from vwm.nn.precision import BinsModule, at_least_float32
from vwm.nn.two_hot import neighbor_cross_entropy, neighbor_weights, split_position

VALUE_TRANSFORM_EPSILON = 0.001
"""Slope of the linear term, which keeps the transform invertible in floating point for large numbers."""


def value_transform(x: Tensor) -> Tensor:
    """h(x) = sign(x) (sqrt(|x| + 1) - 1) + 0.001 x (arXiv 1805.11593)."""
    return x.sign() * ((x.abs() + 1).sqrt() - 1) + VALUE_TRANSFORM_EPSILON * x


def inverse_value_transform(y: Tensor) -> Tensor:
    """The inverse of ``value_transform``."""
    # Solve VALUE_TRANSFORM_EPSILON u^2 + u = c for u = sqrt(|x| + 1), in a form that is exact at 0.
    c = y.abs() + 1 + VALUE_TRANSFORM_EPSILON
    u = 2 * c / (1 + (1 + 4 * VALUE_TRANSFORM_EPSILON * c).sqrt())
    return y.sign() * (u.square() - 1)


class ScaledSupport(BinsModule):
    """Bins at the integers from -limit to limit of ``value_transform``.

    A number is encoded as weights of the two nearest bins.

    Args:
        limit: transformed value of the outermost bin (300, as in MuZero: numbers up to about 48,000).

    Raises:
        ValueError: ``limit`` is below 1.
    """

    def __init__(self, limit: int = 300) -> None:
        super().__init__()
        if limit < 1:
            raise ValueError(f"limit must be 1 or more, got {limit}")
        self.limit = limit
        self.bins = 2 * limit + 1
        self.register_buffer("values", torch.arange(-limit, limit + 1, dtype=torch.float32), persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        """[...] -> weights [..., bins], whose mean is ``value_transform(x)``, clamped to [-limit, limit]."""
        return neighbor_weights(*self._neighbors(x), self.bins)

    def mean(self, logits: Tensor) -> Tensor:
        """[..., bins] -> the expected value, [...]."""
        return inverse_value_transform((at_least_float32(logits).softmax(-1) * self.values).sum(-1))

    def loss(self, logits: Tensor, x: Tensor) -> Tensor:
        """Cross-entropy, [..., bins] and [...] -> [...]."""
        return neighbor_cross_entropy(logits, *self._neighbors(x))

    def _neighbors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bin below each number, and the share of the next one."""
        position = value_transform(at_least_float32(x)).clamp(-self.limit, self.limit) + self.limit
        return split_position(position, self.bins)
