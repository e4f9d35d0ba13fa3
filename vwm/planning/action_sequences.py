"""Distributions over action sequences, which sampling planners draw from and fit to the best sequences.

Legend: b problems, k sequences, h steps of the horizon, a dimensions of an action or number of discrete actions.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor


class GaussianActionSequences(NamedTuple):
    """Independent normal distributions over continuous actions, clipped to a bound.

    Attributes:
        mean: float [b, h, a].
        std: float [b, h, a].
        bound: float [b, 1, 1], largest absolute value of each dimension.
    """

    mean: Tensor
    std: Tensor
    bound: Tensor

    @classmethod
    def initial(cls, batch: int, horizon: int, size: int, std: float, bound: float, device: torch.device) -> Self:
        """Make a distribution with mean 0 and a standard deviation of ``std`` times the bound."""
        mean = torch.zeros(batch, horizon, size, device=device)
        return cls(mean=mean, std=mean + std * bound, bound=mean.new_full((batch, 1, 1), bound))

    def draw(self, noise: Tensor) -> Tensor:
        """Turn standard normal noise, float [b, k, h, a], into actions of the same shape."""
        bound = self.bound[:, None]
        return (self.mean[:, None] + self.std[:, None] * noise).clamp(-bound, bound)

    def fit(self, actions: Tensor, weights: Tensor, momentum: float, floor: float) -> Self:
        """Move toward the weighted mean and standard deviation of sequences.

        Args:
            actions: [b, k, h, a].
            weights: float [b, k], summing to 1 over k.
            momentum: share of the old mean and deviation that is kept.
            floor: smallest standard deviation, as a share of the bound.
        """
        share = weights[:, :, None, None]
        mean = (share * actions).sum(dim=1)
        std = (share * (actions - mean[:, None]).square()).sum(dim=1).sqrt()
        return self._replace(
            mean=momentum * self.mean + (1 - momentum) * mean,
            std=(momentum * self.std + (1 - momentum) * std).maximum(floor * self.bound),
        )

    def mode(self) -> Tensor:
        """Return the most likely sequence, [b, h, a]."""
        return self.mean.clamp(-self.bound, self.bound)  # the mean of values at the bound may round to more

    def shift(self, steps: int, initial: Self) -> Self:
        """Return where to start ``steps`` steps later: the rest of the mean, the deviation of ``initial``."""
        return initial._replace(mean=shift_sequences(self.mean, steps, dim=1))


class UniformActionSequences(NamedTuple):
    """Independent uniform distributions over continuous actions, which stay uniform; ``fit`` only moves the mode.

    Attributes:
        mean: float [b, h, a], of the sequences that had weight in the last fit.
        bound: float [b, 1, 1], largest absolute value of each dimension.
    """

    mean: Tensor
    bound: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """Turn standard normal noise, float [b, k, h, a], into actions of the same shape."""
        return self.bound[:, None] * (2 * torch.special.ndtr(noise) - 1)

    def fit(self, actions: Tensor, weights: Tensor, momentum: float, floor: float) -> Self:
        """Take the weighted mean of sequences [b, k, h, a]; the other arguments have no meaning here."""
        return self._replace(mean=(weights[:, :, None, None] * actions).sum(dim=1))

    def mode(self) -> Tensor:
        """Return that mean, [b, h, a]."""
        return self.mean


class CategoricalActionSequences(NamedTuple):
    """Independent categorical distributions over discrete actions.

    Attributes:
        probabilities: float [b, h, a].
    """

    probabilities: Tensor

    @classmethod
    def initial(cls, batch: int, horizon: int, size: int, device: torch.device) -> Self:
        """Make uniform distributions."""
        return cls(torch.full((batch, horizon, size), 1 / size, device=device))

    def draw(self, noise: Tensor) -> Tensor:
        """Turn standard normal noise, float [b, k, h, a], into actions int64 [b, k, h].

        Uses the Gumbel-max trick: every action has exactly its probability, and noise that keeps its sign over time
        gives sequences that repeat their action.
        """
        gumbel = -(-torch.special.log_ndtr(noise)).log()
        return (self.probabilities.log()[:, None] + gumbel).argmax(dim=-1)

    def fit(self, actions: Tensor, weights: Tensor, momentum: float, floor: float) -> Self:
        """Move toward the weighted frequencies of sequences [b, k, h]; ``floor`` is divided among all actions."""
        size = self.probabilities.shape[-1]
        one_hot = torch.nn.functional.one_hot(actions, size).to(weights.dtype)
        frequency = (weights[:, :, None, None] * one_hot).sum(dim=1)
        moved = momentum * self.probabilities + (1 - momentum) * frequency
        return self._replace(probabilities=(1 - floor) * moved + floor / size)

    def mode(self) -> Tensor:
        """Return the most likely sequence, int64 [b, h]."""
        return self.probabilities.argmax(dim=-1)

    def shift(self, steps: int, initial: Self) -> Self:
        """Return where to start ``steps`` steps later: the average of the remaining probabilities and ``initial``'s."""
        remaining = shift_sequences(self.probabilities, steps, dim=1)
        return initial._replace(probabilities=(remaining + initial.probabilities) / 2)


ActionSequences = GaussianActionSequences | UniformActionSequences | CategoricalActionSequences


def shift_sequences(sequences: Tensor, steps: int, dim: int) -> Tensor:
    """Drop the first steps along a dimension, and repeat the last one to keep the length."""
    length = sequences.shape[dim]
    indices = torch.arange(steps, length + steps, device=sequences.device).clamp(max=length - 1)
    return sequences.index_select(dim, indices)
