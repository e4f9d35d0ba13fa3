"""Numbers as a distribution over evenly spaced bins of a squashed axis (MuZero, arXiv 1911.08265, appendix F)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VALUE_TRANSFORM_EPSILON = 0.001
"""What is left of a number's own size where it is large, so that the squashing can be undone."""


def value_transform(x: Tensor) -> Tensor:
    """h(x) = sign(x) (sqrt(|x| + 1) - 1) + 0.001 x (arXiv 1805.11593)."""
    return x.sign() * ((x.abs() + 1).sqrt() - 1) + VALUE_TRANSFORM_EPSILON * x


def inverse_value_transform(y: Tensor) -> Tensor:
    """The inverse of ``value_transform``."""
    reach = (
        y.abs() + 1 + VALUE_TRANSFORM_EPSILON
    )  # of u = sqrt(|x| + 1), where SLOPE u^2 + u = reach; written so that 0 is not rounded
    u = 2 * reach / (1 + (1 + 4 * VALUE_TRANSFORM_EPSILON * reach).sqrt())
    return y.sign() * (u.square() - 1)


class ScaledSupport(nn.Module):
    """Bins at the integers from -reach to reach of ``value_transform``.

    A number becomes the weights of the two nearest bins.

    Args:
        reach: MuZero's 300 holds numbers up to about 48,000; small tasks need less.

    Raises:
        ValueError: there is no bin but 0.
    """

    values: Tensor

    def __init__(self, reach: int = 300) -> None:
        super().__init__()
        if reach < 1:
            raise ValueError(f"reach must be 1 or more, got {reach}")
        self.reach, self.bins = reach, 2 * reach + 1
        self.register_buffer("values", torch.arange(-reach, reach + 1, dtype=torch.float32), persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        """[...] -> weights [..., bins], whose mean is squash(x), clamped to the reach."""
        place = value_transform(x.float()).clamp(-self.reach, self.reach) + self.reach
        low = place.floor().clamp(max=self.bins - 2)
        share = (place - low)[..., None]
        below = low.nan_to_num(nan=0.0).long()  # what is no number still makes weights that are none
        return F.one_hot(below, self.bins) * (1 - share) + F.one_hot(below + 1, self.bins) * share

    def mean(self, logits: Tensor) -> Tensor:
        """[..., bins] -> the number that the distribution means, [...]."""
        return inverse_value_transform((logits.float().softmax(-1) * self.values).sum(-1))

    def loss(self, logits: Tensor, x: Tensor) -> Tensor:
        """Cross-entropy, [..., bins] and [...] -> [...]."""
        return -(self.encode(x) * logits.float().log_softmax(-1)).sum(-1)
