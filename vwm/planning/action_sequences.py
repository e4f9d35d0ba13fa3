"""Distributions over action sequences: what a sampling planner draws from, and fits to what turned out well.

Legend: b problems, k sequences, h steps of the horizon, a dimensions or choices of an action.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor


class GaussianActionSequences(NamedTuple):
    """Continuous actions, each normal and cut off at its limits.

    Attributes:
        mean: float [b, h, a].
        std: likewise.
        limit: float [b, 1, 1], largest size of each dimension.
    """

    mean: Tensor
    std: Tensor
    limit: Tensor

    @classmethod
    def begin(cls, batch: int, horizon: int, size: int, std: float, limit: float, device: torch.device) -> Self:
        """No action, more or less; ``std`` counts in limits."""
        mean = torch.zeros(batch, horizon, size, device=device)
        return cls(mean, mean + std * limit, mean.new_full((batch, 1, 1), limit))

    def draw(self, noise: Tensor) -> Tensor:
        """Standard normal noise, float [b, k, h, a] -> actions, likewise."""
        drawn, limit = self.mean[:, None] + self.std[:, None] * noise, self.limit[:, None]
        return drawn.clamp(-limit, limit)

    def fit(self, actions: Tensor, weights: Tensor, momentum: float, floor: float) -> Self:
        """Move to the weighted mean and deviation of sequences.

        Args:
            actions: [b, k, h, a].
            weights: float [b, k], summing to 1 over k.
            momentum: share of the old mean and deviation that stays.
            floor: smallest deviation, in limits.
        """
        share = weights[:, :, None, None]
        mean = (share * actions).sum(dim=1)
        std = (share * (actions - mean[:, None]).square()).sum(dim=1).sqrt()
        return self._replace(
            mean=momentum * self.mean + (1 - momentum) * mean,
            std=(momentum * self.std + (1 - momentum) * std).maximum(floor * self.limit),
        )

    def mode(self) -> Tensor:
        """The likeliest sequence, [b, h, a]."""
        return self.mean.clamp(-self.limit, self.limit)  # a mean of limits may round to more

    def later(self, steps: int, start: Self) -> Self:
        """Where to begin ``steps`` steps later: the rest of the mean, with the deviation of ``start``."""
        return start._replace(mean=shift_sequences(self.mean, steps, dim=1))


class CategoricalActionSequences(NamedTuple):
    """Discrete actions, each with probabilities of its own.

    Attributes:
        probabilities: float [b, h, a].
    """

    probabilities: Tensor

    @classmethod
    def begin(cls, batch: int, horizon: int, size: int, device: torch.device) -> Self:
        """Every action alike."""
        return cls(torch.full((batch, horizon, size), 1 / size, device=device))

    def draw(self, noise: Tensor) -> Tensor:
        """Standard normal noise, float [b, k, h, a] -> actions int64 [b, k, h].

        By the Gumbel-max rule, so every action has exactly its probability, and noise that keeps its sign over time
        makes sequences that keep their action.
        """
        gumbel = -(-torch.special.log_ndtr(noise)).log()
        return (self.probabilities.log()[:, None] + gumbel).argmax(dim=-1)

    def fit(self, actions: Tensor, weights: Tensor, momentum: float, floor: float) -> Self:
        """Move to the weighted frequencies of sequences [b, k, h]; ``floor`` is shared out among all actions."""
        size = self.probabilities.shape[-1]
        chosen = torch.nn.functional.one_hot(actions, size).to(weights.dtype)
        frequency = (weights[:, :, None, None] * chosen).sum(dim=1)
        moved = momentum * self.probabilities + (1 - momentum) * frequency
        return self._replace(probabilities=(1 - floor) * moved + floor / size)

    def mode(self) -> Tensor:
        """The likeliest sequence, int64 [b, h]."""
        return self.probabilities.argmax(dim=-1)

    def later(self, steps: int, start: Self) -> Self:
        """Where to begin ``steps`` steps later: half what is left of these probabilities, half ``start``'s."""
        left = shift_sequences(self.probabilities, steps, dim=1)
        return start._replace(probabilities=(left + start.probabilities) / 2)


def shift_sequences(sequences: Tensor, steps: int, dim: int) -> Tensor:
    """Drop the first steps along a dimension, and repeat the last one to keep the length."""
    length = sequences.shape[dim]
    places = torch.arange(steps, length + steps, device=sequences.device).clamp(max=length - 1)
    return sequences.index_select(dim, places)
